"""LRQ-DiT (arXiv 2508.03485, IEEE TCSVT 2026): few levels of uneven distance, rotated as a layer's activations ask.

Weights are codes into a table of levels. Layers with salient channels get a mask and an order that deals these
channels over all blocks before the Hadamard rotation; others the rotation alone. Differs from the paper: by default
the table of a row is the one of least squared error on it, which beats the paper's twin-log table with and without a
rotation; that one can be had too. Salience is told by the ratio of channel peaks, since the size of activations (the
paper's) says nothing about outliers; and errors are fed back where the calibration has kept what that needs.
"""
# N outputs   K inputs   L levels, 2^b

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels import pack_bits
from ...kernels.block_hadamard import SIZES, block_of
from ...kernels.decode_codes import decode_lookup
from .basis import Basis
from .feedback import carry_in, feed, gram_in
from .format import Coded, Format, check_finite, rows_of, weight_format
from .lookup import TOP, fitted_levels, gauss_levels, looked_up, nearest, one_of_two, whole
from .stats import LayerStats
from .tlq import searched, twin_log_levels
from .turns import spreading_turns, turned_block, zigzag
from .vidit_q import channel_mask

CODEBOOKS = ("lloyd", "gauss", "tlq")
ROTATIONS = ("adaptive", "hadamard", "outlier", "duquant", "none")
SALIENT = 30.0  # times the median peak; mild outliers stay below 5, salient ones of PixArt go to 245
LOUD = 1.0  # the paper's: root mean square of the input from which it sees a salient layer
SEARCHED = 64  # rows that the search of twin-log levels looks at
AT_ONCE = 2**21  # weights that are coded at a time: of 5120 inputs it takes 140 MB
SAME = 2**-8  # growth of a row that is taken for none: rounding to bfloat16 changes no row by more
PASSES = 2  # of the search for the best scale of a row: 0.07 dB with the fixed table on rows of 256, more add nothing


@weight_format("lrq")
@dataclass(frozen=True)
class LRQ(Format):
    """codebook: "lloyd" fitted to each row; "gauss" a fixed one for all; "tlq" twin-log, of each row
    rotation: "hadamard"; "outlier" with mask and order before it; "duquant" with turns between these; "none";
        "adaptive": "outlier" where channels are salient, else "hadamard"
    by_size: salient layers are told by the size of their activations, as the paper has it, not by the ratio of peaks
    alpha: how much of the balance the weights bear in the mask, 0 to 1
    feedback: make up for the error of a column in those after it, where the calibration kept the gram
    """

    codebook: str = "lloyd"
    rotation: str = "adaptive"
    by_size: bool = False
    alpha: float = 0.5
    feedback: bool = True

    label: ClassVar[str] = "LRQ-DiT"
    summary: ClassVar[str] = "a table of levels, close where weights are many; rotation by salience"
    widths: ClassVar[tuple[int, ...]] = (2, 3, 4)
    needs: ClassVar[str] = "stats"

    def __post_init__(self) -> None:
        for what, given, known in (("codebook", self.codebook, CODEBOOKS), ("rotation", self.rotation, ROTATIONS)):
            if given not in known:
                raise ValueError(f"LRQ-DiT has no {what} {given!r}. Accepted: {', '.join(known)}.")

    def why_not(self, shape: tuple[int, int], bits: int) -> str | None:
        if block_of(shape[1]) == 1:
            return f"its {shape[1]} inputs are no multiple of {SIZES[-1]}, the least rotation block"
        return pack_bits.why_not(shape[1], bits)

    def encode(self, weight: Tensor, bits: int, stats: LayerStats | None = None) -> Coded:
        check_finite(weight)
        basis = self._basis(weight, stats)
        seen = weight[:: -(-len(weight) // SEARCHED)]
        levels = self._levels(basis.weight(seen.float()), bits)
        carry = carry_in(basis, stats, weight.device) if self.feedback else None
        parts = [self._encoded(rows, bits, basis, levels, carry) for rows in weight.split(at_once(weight))]
        codes, scale = (torch.cat(x) for x in zip(*(part[:2] for part in parts), strict=True))
        table = torch.cat([part[2] for part in parts]) if parts[0][2].ndim == 2 else parts[0][2]
        return Coded(self.name, bits, tuple(weight.shape), codes, scale, table, basis)

    def recode(self, coded: Coded, weight: Tensor, seed: int = 0) -> Coded:
        """The scale of a row grows with its size, so that an unchanged weight gets the codes it had."""
        step = at_once(weight)
        parts = [self._recoded(rows_of(coded, i, i + step), weight[i : i + step], seed and seed + i)
                 for i in range(0, coded.shape[0], step)]  # fmt: skip
        codes, scale = (torch.cat(x) for x in zip(*parts, strict=True))
        return replace(coded, codes=codes, scale=scale)

    def values(self, coded: Coded) -> Tensor:
        return self.integers(coded)[0].float()

    def integers(self, coded: Coded) -> tuple[Tensor, Tensor]:
        return decode_lookup(coded.codes, coded.bits, coded.shape[1], coded.table), coded.scale

    def why_not_table(self, coded: Coded) -> str | None:
        levels = 2**coded.bits
        if coded.table is None or coded.table.dtype != torch.int8:
            return "its table of levels is not there, or not int8"
        if tuple(coded.table.shape) not in ((levels,), (coded.shape[0], levels)):
            return f"its table is {list(coded.table.shape)}, not one of {levels} levels or one such for every row"
        return None

    def size(self, shape, bits, stats=None) -> int:
        rows, columns = shape
        table = 2**bits * (1 if self.codebook == "gauss" else rows)
        kind = self._kind(stats)
        extra = {"outlier": 8 * columns, "duquant": (8 + 2 * turned_block(columns)) * columns}.get(kind, 0)
        return rows * columns * bits // 8 + 4 * rows + table + extra

    def _kind(self, stats: LayerStats | None) -> str:
        """The rotation that a layer gets. raises: ValueError"""
        if self.rotation in ("outlier", "duquant") and stats is None:
            raise ValueError(f"LRQ-DiT with the rotation {self.rotation!r} needs to know the layer's activations. Give "
                             "it a calibration, or choose 'adaptive', 'hadamard' or 'none'.")  # fmt: skip
        if self.rotation != "adaptive":
            return self.rotation
        salient = stats is not None and (stats.rms >= LOUD if self.by_size else stats.salience > SALIENT)
        return "outlier" if salient else "hadamard"

    def _basis(self, weight: Tensor, stats: LayerStats | None) -> Basis:
        kind, block = self._kind(stats), block_of(weight.shape[1])
        if kind in ("hadamard", "none"):
            return Basis(block if kind == "hadamard" else 1)
        peaks = stats.peaks.to(weight.device)
        mask = channel_mask(weight, peaks, self.alpha)
        if kind == "outlier":
            return Basis(block, mask, order=zigzag(peaks * mask, block))
        gram = torch.diag(peaks.square()) if stats.gram is None else stats.gram.to(weight.device).float()
        turns = spreading_turns(gram * mask * mask[:, None], turned_block(len(mask)))
        turned = gram_in(Basis(1, mask, turns), gram).diagonal()
        return Basis(block, mask, turns.half(), zigzag(turned, block))

    def _levels(self, seen: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
        """What gives the levels, [L] or [N, L], of rows of root mean square 1. seen: some rows of the layer, rotated"""
        if self.codebook == "gauss":
            return lambda rows: gauss_levels(bits, rows.device)
        if self.codebook == "lloyd":
            return lambda rows: fitted_levels(rows, bits)
        eta, quantile = searched(seen / rms(seen).clamp_min(1e-30), bits)
        return lambda rows: twin_log_levels(rows, bits, eta, quantile)

    def _encoded(
        self, rows: Tensor, bits: int, basis: Basis, levels: Callable[[Tensor], Tensor], carry: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and table of some rows [N, K]."""
        rotated = basis.weight(rows.float())
        size = rms(rotated)
        table, step = whole(levels(rotated / size.clamp_min(1e-30)))
        scale = size * step
        if self.codebook != "lloyd":  # levels that are fitted to the row have the best scale already
            scale = best_scale(rotated, table, scale)
        if carry is not None:
            rotated = feed(rotated, carry, lambda columns, start: to_levels(columns, scale, table))
        return pack_bits.pack(nearest(in_steps(rotated, scale), table), bits), scale, table

    def _recoded(self, coded: Coded, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Codes and scale of some rows [N, K]."""
        rotated = coded.basis.weight(rows.float())
        before, now = rms(self.values(coded)) * coded.scale, rms(rotated)
        growth = now / before.clamp_min(1e-30)
        growth = torch.where((growth - 1).abs() < SAME, 1.0, growth)
        # A row that was all zeros kept no scale; it gets the one that Gaussian rows have.
        fresh = now * gauss_levels(coded.bits, now.device)[-1] / TOP
        scale = torch.where(before > 0, coded.scale * growth, fresh)
        steps = in_steps(rotated, scale)
        codes = one_of_two(steps, coded.table, seed) if seed > 0 else nearest(steps, coded.table)
        return pack_bits.pack(codes, coded.bits), scale


def at_once(weight: Tensor) -> int:
    """Rows that are coded at a time."""
    return max(1, AT_ONCE // weight.shape[1])


def best_scale(rotated: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """The scale [N, 1] of least squared error of each row, found in turn with the codes. scale: a first one"""
    for _ in range(PASSES):
        whole_rows = looked_up(nearest(in_steps(rotated, scale), table), table).float()
        power = whole_rows.square().sum(1, keepdim=True)
        scale = (rotated * whole_rows).sum(1, keepdim=True) / power.clamp_min(1e-30)
    return scale


def to_levels(columns: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """[N, D] float -> the nearest values that the rows have."""
    return looked_up(nearest(in_steps(columns, scale), table), table) * scale


def in_steps(rows: Tensor, scale: Tensor) -> Tensor:
    """[N, K] in steps of a scale [N, 1] that may be 0."""
    return rows / scale.clamp_min(1e-30)


def rms(rows: Tensor) -> Tensor:
    """Root mean square of each row, [N, 1]."""
    return rows.square().mean(1, keepdim=True).sqrt()
