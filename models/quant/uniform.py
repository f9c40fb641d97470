"""Evenly spaced values: one step per output channel, and a zero point below 8 bits."""
# N outputs   K inputs

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import pack_bits
from ...kernels.decode_codes import decode_uniform
from .basis import Basis
from .feedback import feed
from .format import Coded, Format

AT_ONCE = 2**22  # weights that are encoded at a time: the search takes some 6 copies in float32, 100 MB
CLIPS = tuple(1 - i / 50 for i in range(20))  # shares of the range that are tried, 0.62 to 1
ON_GRID = 1e-3  # of a step: nearer than this a weight is on a value, off it by the arithmetic of a rotation and back
SLACK = 0.5  # of a step, beyond the range: it rounds to the last value


class Uniform(Format):
    """What formats with evenly spaced values share.

    8 bits: -127 to 127 around 0; fewer: 0 to 2^b - 1 less a zero point, as ViDiT-Q and min-max rounding have it.
    """

    widths = (2, 3, 4, 6, 8)

    def values(self, coded: Coded) -> Tensor:
        return self.integers(coded)[0].float()

    def integers(self, coded: Coded) -> tuple[Tensor, Tensor]:
        if coded.bits == 8:
            return coded.codes, coded.scale
        return decode_uniform(coded.codes, coded.bits, coded.shape[1], coded.table), coded.scale

    def recode(self, coded: Coded, weight: Tensor, seed: int = 0) -> Coded:
        rotated = coded.basis.weight(weight.float())
        scale, zero = ranges(rotated, coded.bits)
        # A row that fits into its old range keeps it: then a weight that has not changed comes back bit for bit.
        fits = _fits(rotated / coded.scale, coded.table, coded.bits)
        scale = torch.where(fits, coded.scale, scale)
        zero = None if zero is None else torch.where(fits, coded.table, zero)
        return rounded(rotated, scale, zero, coded, seed)

    def why_not_table(self, coded: Coded) -> str | None:
        if coded.bits == 8:
            return None if coded.table is None else "codes of 8 bits have no zero point"
        if coded.table is None or tuple(coded.table.shape) != (coded.shape[0], 1) or coded.table.dtype != torch.uint8:
            return "its zero point is no uint8 of one per row"
        return None

    def size(self, shape, bits, stats=None) -> int:
        rows, columns = shape
        return rows * columns * bits // 8 + 4 * rows + (rows if bits < 8 else 0)


def encode_uniform(
    name: str, weight: Tensor, bits: int, basis: Basis, clip: bool, carry: Tensor | None = None
) -> Coded:
    """weight: [N, K]. clip: look for the range of least squared error, else from the least to the largest value
    carry: for error feedback, see there
    """
    step = max(1, AT_ONCE // weight.shape[1])
    parts = [_encoded(name, rows, bits, basis, clip, carry) for rows in weight.split(step)]
    if len(parts) == 1:
        return parts[0]
    table = None if bits == 8 else torch.cat([part.table for part in parts])
    codes, scale = torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts])
    return Coded(name, bits, tuple(weight.shape), codes, scale, table, basis)


def _encoded(name: str, weight: Tensor, bits: int, basis: Basis, clip: bool, carry: Tensor | None) -> Coded:
    rotated = basis.weight(weight.float())
    scale, zero = best_ranges(rotated, bits) if clip else ranges(rotated, bits)
    if carry is not None:
        rotated = feed(rotated, carry, lambda columns, start: _on_grid(columns, scale, zero, bits))
    empty = Coded(name, bits, tuple(weight.shape), rotated, scale, zero, basis)
    return rounded(rotated, scale, zero, empty, 0)


def ranges(weight: Tensor, bits: int, share: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Step [N, 1] and zero point [N, 1] uint8 (None: 0) of min-max rounding, with 0 among the values."""
    if bits == 8:
        return weight.abs().amax(1, keepdim=True).mul(share).clamp_min(1e-12) / 127, None
    low = weight.amin(1, keepdim=True).clamp_max(0) * share
    high = weight.amax(1, keepdim=True).clamp_min(0) * share
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    return scale, (-low / scale).round().to(torch.uint8)


def best_ranges(weight: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """As `ranges`, with the share of CLIPS that errs least for each row."""
    scale, zero = ranges(weight, bits)
    least = _error(weight, scale, zero, bits)
    for share in CLIPS[1:]:
        other, other_zero = ranges(weight, bits, share)
        error = _error(weight, other, other_zero, bits)
        better = error < least
        scale, least = torch.where(better, other, scale), torch.where(better, error, least)
        zero = None if zero is None else torch.where(better, other_zero, zero)
    return scale, zero


def rounded(weight: Tensor, scale: Tensor, zero: Tensor | None, like: Coded, seed: int) -> Coded:
    """`like` with the codes of a weight in its basis."""
    codes = _codes(weight, scale, zero, like.bits, seed)
    codes = codes.to(torch.int8) if zero is None else pack_bits.pack(codes.to(torch.uint8), like.bits)
    return replace(like, codes=codes, scale=scale, table=zero)


def _codes(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int, seed: int = 0) -> Tensor:
    steps = weight / scale
    if seed > 0:
        generator = torch.Generator(weight.device).manual_seed(seed)
        chance = torch.rand(steps.shape, device=weight.device, generator=generator)
        whole = steps.round()
        steps = torch.where((steps - whole).abs() < ON_GRID, whole, (steps + chance).floor_())
    else:
        steps = steps.round_()
    if zero is None:
        return steps.clamp_(-127, 127)
    return steps.add_(zero).clamp_(0, 2**bits - 1)


def _on_grid(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """The nearest values that the rows have."""
    codes = _codes(weight, scale, zero, bits)
    return (codes if zero is None else codes - zero) * scale


def _fits(steps: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """[N, 1]: True where all steps [N, K] round to values that there are."""
    low, high = (-127, 127) if zero is None else (0, 2**bits - 1)
    steps = steps if zero is None else steps + zero
    return (steps.amin(1, keepdim=True) >= low - SLACK) & (steps.amax(1, keepdim=True) <= high + SLACK)


def _error(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    return (_on_grid(weight, scale, zero, bits) - weight).square_().sum(1, keepdim=True)
