"""branchwork doctor"""

from typing import TYPE_CHECKING

from branchwork.cli.output import Part, deliver, make_table, show
from branchwork.cli.parameters import Json
from branchwork.language import say

if TYPE_CHECKING:
    from branchwork.installation import Installation


def doctor(*, json_file: Json = None) -> None:
    """Show what this installation can do: versions, devices, folders, and what each command still needs.

    Nothing is installed, fetched or left behind.
    """
    import branchwork

    found = branchwork.doctor()
    deliver(found, json_file, lambda: show(*parts(found)))


def parts(found: "Installation") -> list[Part]:
    devices = make_table("device", "computes in", "name")
    for device in found.devices:
        devices.add_row(device.name, device.precision, device.description)
    places = make_table("for", "free", "folder")
    for place in found.places:
        free = "–" if place.free_bytes is None else f"{place.free_bytes / 1e9:,.1f} GB"
        places.add_row(place.purpose, free, place.path)
    packages = make_table("package", "version", "needed for")
    for package in found.requirements:
        version = (package.version or "–").partition("-")[0]  # OpenVINO's goes on for a line
        packages.add_row(package.name, version, ", ".join(package.needed_for))
    for table in (devices, places, packages):
        table.columns[2].justify, table.columns[2].no_wrap = "left", False
    return [
        ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        found.system,
        devices,
        say("--device auto chooses {device}", device=found.device),
        places,
        packages,
        *(found.problems or [say("nothing is missing")]),
    ]
