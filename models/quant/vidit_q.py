"""ViDiT-Q (arXiv 2406.02540, ICLR 2025): channel balance, rotation, then per-channel weights and per-token activations.

What stays the same over noise levels and prompts is divided out by a fixed mask of the channels; what changes is spread
by a Hadamard rotation; the order matters, and the weight is rounded once, after both. Differs from the paper: the
rotation is of blocks (256 where it fits), so that comfy-kitchen's int8 linear applies it; below 8 bits the range of
each row is searched; 8 bits without a mask is ComfyUI's own `int8_tensorwise` with rotation, which any ComfyUI loads.
"""
# K inputs

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...kernels import pack_bits
from ...kernels.block_hadamard import SIZES, block_of
from .basis import Basis
from .feedback import carry_in
from .format import Coded, check_finite, weight_format
from .stats import LayerStats
from .uniform import Uniform, encode_uniform


@weight_format("vidit_q")
@dataclass(frozen=True)
class ViDiTQ(Uniform):
    """alpha: how much of the balance the weights bear, 0 to 1; the released kernels have 0.5665
    clip: below 8 bits, search the range of each row
    feedback: make up for the error of a column in those after it, where the calibration kept the gram
    """

    alpha: float = 0.5665
    clip: bool = True
    feedback: bool = True

    label: ClassVar[str] = "ViDiT-Q"
    summary: ClassVar[str] = "balanced and rotated channels, evenly spaced values, int8 activations per token"
    widths: ClassVar[tuple[int, ...]] = (4, 6, 8)
    needs: ClassVar[str] = "stats"

    def why_not(self, shape: tuple[int, int], bits: int) -> str | None:
        if block_of(shape[1]) == 1:
            return f"its {shape[1]} inputs are no multiple of {SIZES[-1]}, the least rotation block"
        return pack_bits.why_not(shape[1], bits)

    def encode(self, weight: Tensor, bits: int, stats: LayerStats | None = None) -> Coded:
        check_finite(weight)
        mask = None if stats is None else channel_mask(weight, stats.peaks, self.alpha)
        basis = Basis(block_of(weight.shape[1]), mask)
        carry = carry_in(basis, stats, weight.device) if self.feedback else None
        return encode_uniform(self.name, weight, bits, basis, self.clip and bits < 8, carry)

    def size(self, shape, bits, stats=None) -> int:
        return super().size(shape, bits) + (4 * shape[1] if stats is not None else 0)


def channel_mask(weight: Tensor, peaks: Tensor, alpha: float) -> Tensor:
    """The mask m [K] that multiplies activations: |W|^alpha / |A|^(1 - alpha) of the largest values of each channel.

    Its geometric mean is set to 1: a common factor changes nothing, and numbers near 1 are safe in 16 bits.
    peaks: [K], largest absolute activation of each channel
    """
    weights = weight.abs().amax(0).float().clamp_min(1e-5)
    mask = weights**alpha / peaks.float().clamp_min(1e-3) ** (1 - alpha)
    return mask / mask.log().mean().exp()
