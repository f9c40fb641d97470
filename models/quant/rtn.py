"""Plain rounding to the nearest: min-max range per output channel, no rotation. The control of every other format."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...kernels import pack_bits
from .basis import Basis
from .format import Coded, check_finite, weight_format
from .uniform import Uniform, encode_uniform


@weight_format("rtn")
@dataclass(frozen=True)
class RoundToNearest(Uniform):
    label: ClassVar[str] = "Round to Nearest"
    summary: ClassVar[str] = "evenly spaced values per output channel, nothing else; what others are measured against"

    def why_not(self, shape: tuple[int, int], bits: int) -> str | None:
        return pack_bits.why_not(shape[1], bits)

    def encode(self, weight: Tensor, bits: int, stats=None) -> Coded:
        check_finite(weight)
        return encode_uniform(self.name, weight, bits, Basis(), clip=False)
