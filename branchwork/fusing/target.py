"""The target of fusing: batch size, precision and engine, and what operations cost there.

The unit of cost is the time of one multiply-accumulate in a large matrix product of float32
(docs/experiments/fusing.md has the timings).
"""

from dataclasses import dataclass

ENGINES = ("onnxruntime", "openvino")

# Moving one number of an image or a weight through memory.
MOVE = 12


@dataclass(frozen=True)
class Target:
    """Batches of `batch` images, in float32 or `bf16`, run by torch itself or by an `engine` of `ENGINES`."""

    batch: int
    bf16: bool = False
    engine: str | None = None

    @property
    def product(self) -> float:
        """One multiply-accumulate of a matrix product."""
        return 1 / 6 if self.bf16 else 1.0

    def convolved(self, channels: int) -> float:
        """One multiply-accumulate of a convolution; few channels do not fill the processor's vectors or tiles."""
        few = channels < 16
        if self.bf16:
            return 1.5 if few else 1 / 3
        if self.engine:
            return 3.0 if few else 1.3
        return 1.5 if few else 1.0

    @property
    def start(self) -> float:
        """Starting one operation of any kind, for each image."""
        return (200_000 if self.engine else 1_000_000) / self.batch

    @property
    def start_convolution(self) -> float:
        """The same for a convolution, which torch prepares for some fifty microseconds before it computes."""
        return (400_000 if self.engine else 8_000_000) / self.batch

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel lie side by side between operations.

        Engines convert their blocks of channels into either order, but not with rows before images, as batches have it.
        """
        return self.engine is None or self.batch == 1
