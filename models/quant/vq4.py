"""VQ4DiT (arXiv 2408.17131, AAAI 2025): groups of weights along the inputs become numbers of vectors in a codebook.

2 bits: 256 vectors of 4 weights; 3 bits: 64 vectors of 2. Differs from the paper: blocks of channels are rotated and
rows divided by their RMS first, so that k-means can begin at one codebook for all layers; the codebook is kept in whole
steps of the row's scale, so that int8 products multiply exactly what is stored; with the gram of a calibration the
error of each group is made up for by the groups after it. Candidates and the block-wise calibration of the paper are in
`learned` and `refine`.
"""
# N outputs   K inputs   C vectors of the codebook   D weights of each

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels import pack_bits
from ...kernels.block_hadamard import block_of
from ...kernels.decode_codes import decode_vectors
from .basis import Basis
from .codebook import BOOKS, SAMPLE, fitted, nearest, nearest_few, universal
from .feedback import carries, feed, gram_in
from .format import Coded, Format, check_finite, weight_format
from .stats import LayerStats

CODE_BITS = {2: 8, 3: 6}  # of a vector's number
TOP = 127
SAME = 1e-3  # growth of a row that is taken for none: rounding to bfloat16 changes a row of 256 by less than a tenth
AT_ONCE = 2**22  # weights that are encoded at a time: some 5 copies in float32, 80 MB


@weight_format("vq4")
@dataclass(frozen=True)
class VQ4DiT(Format):
    """fit: a codebook of its own for each layer, by k-means; else the universal one
    damp: of the gram, for error feedback
    """

    fit: bool = True
    damp: float = 0.01

    label: ClassVar[str] = "VQ4DiT"
    summary: ClassVar[str] = "groups of 4 or 2 weights as vectors of a codebook; gains most from a refinement"
    widths: ClassVar[tuple[int, ...]] = (2, 3)
    needs: ClassVar[str] = "stats"
    table_by_row: ClassVar[bool] = False
    table_by_row: ClassVar[bool] = False

    def why_not(self, shape: tuple[int, int], bits: int) -> str | None:
        width = BOOKS[bits][1]
        if shape[1] % width:
            return f"its inputs are no multiple of {width}"
        return pack_bits.why_not(shape[1] // width, CODE_BITS[bits])

    def encode(self, weight: Tensor, bits: int, stats: LayerStats | None = None) -> Coded:
        check_finite(weight)
        basis = Basis(block_of(weight.shape[1]))
        book = self._book(weight, bits, basis)
        step = book.abs().amax() / TOP
        table, carry = (book / step).round().to(torch.int8), None
        if stats is not None and stats.gram is not None:
            carry = carries(gram_in(basis, stats.gram.to(weight.device)), BOOKS[bits][1], self.damp)
        parts = [_encoded(basis.weight(rows.float()), table, step, bits, carry) for rows in _by_rows(weight)]
        codes, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Coded(self.name, bits, tuple(weight.shape), codes, scale, table, basis)

    def recode(self, coded: Coded, weight: Tensor, seed: int = 0) -> Coded:
        """The scale of a row grows with its RMS; an unchanged weight gets the codes and scales that it had."""
        rotated = coded.basis.weight(weight.float())
        before = self.values(coded).square().sum(1, keepdim=True).sqrt() * coded.scale
        grown = rotated.square().sum(1, keepdim=True).sqrt() / before.clamp_min(1e-30)
        scale = torch.where((before > 0) & ((grown - 1).abs() > SAME), coded.scale * grown, coded.scale)
        vectors = _vectors(rotated / scale.clamp_min(1e-30), coded.bits)
        numbers = _by_chance(vectors, coded.table.float(), seed) if seed > 0 else nearest(vectors, coded.table.float())
        return replace(coded, codes=packed(numbers, coded.shape, coded.bits), scale=scale)

    def values(self, coded: Coded) -> Tensor:
        return self.integers(coded)[0].float()

    def integers(self, coded: Coded) -> tuple[Tensor, Tensor]:
        return decode_vectors(coded.codes, CODE_BITS[coded.bits], coded.shape[1], coded.table), coded.scale

    def why_not_table(self, coded: Coded) -> str | None:
        wanted = BOOKS[coded.bits]
        if coded.table is None or tuple(coded.table.shape) != wanted or coded.table.dtype != torch.int8:
            return f"its codebook is no int8 of {list(wanted)}"
        return None

    def size(self, shape: tuple[int, int], bits: int, stats: LayerStats | None = None) -> int:
        rows, columns = shape
        count, width = BOOKS[bits]
        return rows * columns * bits // 8 + 4 * rows + count * width

    def vectors(self, coded: Coded) -> tuple[Tensor, Tensor]:
        return numbers_of(coded), coded.table.float()

    def with_vectors(self, coded: Coded, numbers: Tensor, book: Tensor, scale: Tensor) -> Coded:
        step = book.abs().amax().clamp_min(1e-12) / TOP
        table = (book / step).round().to(torch.int8)
        return replace(coded, codes=packed(numbers, coded.shape, coded.bits), scale=scale * step, table=table)

    def _book(self, weight: Tensor, bits: int, basis: Basis) -> Tensor:
        """[C, D] float32, for rows divided by their RMS."""
        book = universal(bits).to(weight.device)
        if not self.fit:
            return book
        skip = -(-weight.numel() // (SAMPLE * BOOKS[bits][1]))
        rotated = basis.weight(weight[::skip].float())
        power = rotated.square().mean(1, keepdim=True).clamp_min(1e-24)
        counts = power.expand(-1, rotated.shape[1] // BOOKS[bits][1]).reshape(-1)
        return fitted(_vectors(rotated / power.sqrt(), bits), book, counts / counts.mean())


def numbers_of(coded: Coded) -> Tensor:
    """[N, K / D] uint8: which vector of the codebook each group of weights is."""
    return pack_bits.unpack(coded.codes, CODE_BITS[coded.bits], coded.shape[1] // BOOKS[coded.bits][1])


def packed(numbers: Tensor, shape: tuple[int, int], bits: int) -> Tensor:
    """The inverse of `numbers_of`. numbers: N * K / D of them, row by row"""
    return pack_bits.pack(numbers.to(torch.uint8).reshape(shape[0], -1), CODE_BITS[bits])


def _vectors(weight: Tensor, bits: int) -> Tensor:
    """[N, K] -> [N * K / D, D]"""
    return weight.reshape(-1, BOOKS[bits][1])


def _by_rows(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(max(1, AT_ONCE // weight.shape[1]))


def _encoded(rotated: Tensor, table: Tensor, step: Tensor, bits: int, carry: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and scale [N, 1] of rows in the coded basis."""
    scale = rotated.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12) * step
    if carry is None:
        numbers = nearest(_vectors(rotated / scale, bits), table.float())
    else:
        numbers = _with_feedback(rotated, scale, table.float(), carry)
    return packed(numbers, rotated.shape, bits), scale


def _with_feedback(rotated: Tensor, scale: Tensor, book: Tensor, carry: Tensor) -> Tensor:
    """Numbers [N, K / D], group by group."""
    found: list[Tensor] = []

    def rounded(columns: Tensor, start: int) -> Tensor:
        found.append(nearest(columns / scale, book))
        return book[found[-1]] * scale

    feed(rotated, carry, rounded, book.shape[1])
    return torch.stack(found, 1)


def _by_chance(vectors: Tensor, book: Tensor, seed: int) -> Tensor:
    """One of the two nearest, more often the nearer one: in inverse proportion to the distances."""
    far, numbers = nearest_few(vectors, book, 2)
    generator = torch.Generator(vectors.device).manual_seed(seed)
    chance = torch.rand(len(vectors), device=vectors.device, generator=generator)
    second = chance * far.sum(1) < far[:, 0]  # strictly: a vector of the codebook stays what it is
    return torch.where(second, numbers[:, 1], numbers[:, 0])
