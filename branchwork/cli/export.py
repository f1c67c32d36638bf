"""branchwork export"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.output import Part, deliver, show
from branchwork.cli.parameters import DATA, AnyNet, Json, Source, parse_drop
from branchwork.language import enumerated, say, times

if TYPE_CHECKING:
    from branchwork.deploy.export import Exported
    from branchwork.page.build import ExportedPage

LARGE = 20.0  # megabytes of a page


@dataclass(frozen=True)
class OptionFlags:
    """The flags of `ExportOptions`."""

    fuse: Annotated[bool, Parameter(help="Merge layers first: the same answers at a lower cost.")] = True
    precision: Annotated[
        Literal["fp32", "bf16", "int8"],
        Parameter(help="The precision that the engine computes in; int8 is for a run, with --to onnx or openvino."),
    ] = "fp32"
    batch_size: Annotated[int, Parameter(help="With --fuse: the number of images at a time to optimise for.")] = 8
    pixels: Annotated[Literal["uint8", "float"], Parameter(help="Pixels from 0 to 255, or floats from 0 to 1.")] = (
        "uint8"
    )
    force: Annotated[bool, Parameter(negative=(), help="Replace an existing file.")] = False
    beside: Annotated[Path | None, Parameter(help="With --to html: a second run, shown on the same picture.")] = None
    calibration_images: Annotated[
        int | None,
        Parameter(help="With --precision int8: on how many validation images to calibrate it; 300 by default."),
    ] = None
    drop: Annotated[
        str | None,
        Parameter(help="With --precision int8: lose at most this much validation accuracy; 1% by default."),
    ] = None


def export(
    net: AnyNet,
    /,
    *,
    to: Annotated[
        Literal["onnx", "openvino", "pt2", "html"],
        Parameter(
            help="For ONNX Runtime (.onnx), OpenVINO (.xml and .bin), or torch (.pt2); html is a page that runs a "
            "run's net in a browser."
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        Parameter(
            help="The file; by default model.onnx, model.xml, model.pt2 or page.html in the run folder, or NET.onnx."
        ),
    ] = None,
    options: Annotated[OptionFlags, Parameter(name="*")] = OptionFlags(),
    data: Annotated[
        str | None,
        Parameter(help=f"Data to try the file on: {DATA}; by default what the run was trained on, or sample."),
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Write a net to a file for an inference engine, with its normalisation and classes, and try it on real images.

    The file appears only if its logits on 1,000 test images equal those of the net as written; in int8, if it keeps its
    accuracy on validation images.
    """
    import branchwork
    from branchwork.deploy.shipped import ExportOptions

    exported = branchwork.export(
        net,
        to=to,
        out=out,
        options=ExportOptions(**{**vars(options), "drop": parse_drop(options.drop)}),
        data=data,
        source=source,
        progress=True,
    )
    deliver(exported, json_file, lambda: show(*parts(exported)))


def page_parts(page: "ExportedPage") -> list[Part]:
    size = page.bytes / 1e6
    large = say("{size:.0f} MB: browsers take a while to open it, and mail may refuse it", size=size)
    return [page.file, large if size > LARGE else say("{size:.2f} MB: open it in any browser", size=size)]


def parts(exported: "Exported | ExportedPage") -> list[Part]:
    if exported.to == "html":
        return page_parts(exported)
    compile_with = exported.metadata.get("compile_with")
    return [
        *exported.files,
        say(
            "{bytes:,} bytes for {engine} {engine_version}, {precision}, fused"
            if exported.fused
            else "{bytes:,} bytes for {engine} {engine_version}, {precision}, as written",
            **vars(exported),
        ),
        say(
            "takes {pixels} images N×{shape}, {range}; returns logits of {count:,} classes: {classes}",
            pixels=exported.pixels,
            shape=times(exported.input_shape),
            range="0–255" if exported.pixels == "uint8" else "0–1",
            count=len(exported.classes),
            classes=enumerated(exported.classes),
        ),
        *(_accuracies(exported) if exported.int8 else [_tried(exported)]),
        *(
            [say("compile it with {setting}: by default OpenVINO chooses the precision", setting=compile_with)]
            if compile_with
            else []
        ),
    ]


def _tried(exported: "Exported") -> str:
    return say(
        "tried on {images:,} test images of {data}: logits differ by up to {difference:.2g} (at most "
        "{tolerance:.2g} is allowed; the largest logit is {largest_logit:.3g}); {differing} of {images:,} classes "
        "differ",
        **vars(exported),
    )


def _accuracies(exported: "Exported") -> list[str]:
    int8, test = exported.int8, exported.test_accuracies
    assert int8 is not None and test is not None, "int8 is for runs, and they have both"
    splits = {"calibration_split": say(int8.calibration_split), "split": say(int8.split)}
    return [
        say(
            "{float_bytes:,} bytes in fp32; calibrated on {calibration_images:,} {calibration_split} images",
            **(vars(int8) | splits),
        ),
        say(
            "accuracy on {images:,} {split} images: {before:.2%} in fp32, {after:.2%} in int8 (a loss of up to "
            "{drop:.2%} is allowed)",
            **(vars(int8) | splits),
        ),
        say(
            "tried on {images:,} test images of {data}: {before:.2%} in fp32, {after:.2%} in int8; "
            "{differing} of {images:,} classes differ",
            **vars(exported),
            before=test[0],
            after=test[1],
        ),
    ]
