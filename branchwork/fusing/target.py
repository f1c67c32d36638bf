"""What a net is fused for, and what things cost there.

Costs are in multiply-accumulates of a large matrix product of float32, by the time that they take (LOG.md has the
timings).
"""

from dataclasses import dataclass

ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Target:
    """Batches of `batch` images, in float32 or `bf16`.

    For an `engine` of `ENGINES`, which takes ReLU into the convolution before it; else for torch itself.
    """

    batch: int
    bf16: bool = False
    engine: str | None = None

    @property
    def single(self) -> bool:
        """One image by ONNX Runtime, of whose time half is operations that are started: the fewer the better."""
        return self.engine == "onnxruntime" and self.batch == 1

    @property
    def channels_last(self) -> bool:
        """How images lie between operations, or how they can be had at no cost.

        ONNX Runtime brings what it computes in blocks of channels into either order, but not with rows before images.
        """
        return self.engine is None or self.single

    @property
    def product(self) -> float:
        """A multiply-accumulate of a matrix product."""
        return 1 / 6 if self.bf16 else 1.0

    def convolved(self, channels: int) -> float:
        """One of a convolution that reads so many channels, which may not fill the processor's vectors or tiles."""
        few = channels < 16
        if self.bf16:
            return 1.5 if few else 1 / 3
        if self.engine:
            return 3.0 if few else 1.3
        return 1.5 if few else 1.0

    @property
    def start(self) -> float:
        """One operation, whatever it does, for each image."""
        return (200_000 if self.engine else 1_000_000) / self.batch

    @property
    def start_convolution(self) -> float:
        """The same of a convolution, which torch prepares for some fifty microseconds before it computes."""
        return (400_000 if self.engine else 8_000_000) / self.batch
