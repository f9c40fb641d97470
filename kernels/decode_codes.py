"""Codes of quantised weights to what they stand for: whole numbers less a zero point, levels of a table, vectors.

Codes lie as in `pack_bits`. The backend in torch spreads the codes of a byte over the bytes of a wider word with shifts
of that word, and looks two codes up at once. One core of an EPYC with AVX-512, best of 3 to 7, 5120 x 5120 codes, ms:
  codes of 4 bits to bytes            11   `pack_bits.unpack` 43, a table of 256 pairs 28
  4 bits by row, int8                 37   `gather` 321, code by code 260, 16 comparisons 606
  4 bits by row, float32             136   `gather` 356, code by code 381
  vectors of 4 in int8, 8-bit codes    9   a table of vectors, row by row 158 (float32)
"""
# N rows   K columns   L levels, 2^b   C vectors of a codebook   D numbers of each

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import pack_bits, triton_decode_codes
from .dispatch import Backend, Dispatch

# For words of 2, 4 and 8 bytes and codes of 8 over that many bits: how far the upper half of what is there goes up, and
# the mask of what then belongs there.
SPREAD = {
    4: (torch.int16, ((4, 0x0F0F),)),
    2: (torch.int32, ((12, 0x000F000F), (6, 0x03030303))),
    1: (torch.int64, ((28, 0x0000000F0000000F), (14, 0x0003000300030003), (7, 0x0101010101010101))),
}
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, for numbers moved together
PAIRED = 4  # bits: a table of pairs has 4^b entries for each row, which pays up to here
AT_ONCE = 1 << 20  # codes of a part on the CPU: 256 rows of 5120 took 38 ms where all 5120 together took 80
DTYPES = (torch.int8, torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class DecodeCall:
    """kind: "uniform", "lookup" or "vectors"    table: zero points, levels or codebook    columns: K"""

    kind: str
    codes: Tensor
    bits: int
    columns: int
    table: Tensor

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by: what comes out is of the table's dtype."""
        return self.table

    @property
    def width(self) -> int:
        """Numbers that a code stands for."""
        return self.table.shape[1] if self.kind == "vectors" else 1

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes and dtypes only."""
        rows, table = self.codes.shape[0], self.table
        if self.bits not in pack_bits.PLANES or self.codes.dtype != torch.uint8 or self.codes.ndim != 2:
            return f"codes are packed uint8 rows of {', '.join(map(str, pack_bits.PLANES))} bits"
        if self.columns % self.width:
            return "the columns are no multiple of the numbers of a vector"
        numbers = self.columns // self.width
        if reason := pack_bits.why_not(numbers, self.bits):
            return reason
        if self.codes.shape[1] * 8 != numbers * self.bits:
            return f"{list(self.codes.shape)} bytes do not hold {numbers} codes of {self.bits} bits a row"
        levels = 1 << self.bits
        wanted = {"uniform": ((rows, 1),), "lookup": ((levels,), (rows, levels)), "vectors": ((levels, self.width),)}
        if tuple(table.shape) not in wanted[self.kind]:
            return f"its table is {list(table.shape)}; it takes {' or '.join(str(list(x)) for x in wanted[self.kind])}"
        if table.dtype not in ((torch.uint8,) if self.kind == "uniform" else DTYPES):
            return f"its table is {table.dtype}"
        return None if table.device == self.codes.device else "codes and table are on two devices"


def decode_reference(kind: str, codes: Tensor, bits: int, columns: int, table: Tensor) -> Tensor:
    """All of them, with `pack_bits.unpack` and an index; the contract is that of the three functions below."""
    width = table.shape[1] if kind == "vectors" else 1
    numbers = pack_bits.unpack(codes, bits, columns // width).long()
    if kind == "uniform":
        return (numbers - table.long()).to(torch.int8)
    if kind == "vectors":
        return table[numbers].flatten(1)
    return table[numbers] if table.ndim == 1 else table.gather(1, numbers)


def decode_uniform(codes: Tensor, bits: int, columns: int, zero: Tensor, *, backend: str | None = None) -> Tensor:
    """Codes less the zero point of their row, [N, K] int8.

    codes: [N, K * bits / 8] uint8; columns: K; zero: [N, 1] uint8
    raises: ValueError with the reason of `DecodeCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(DecodeCall("uniform", codes, bits, columns, zero), backend)


def decode_lookup(codes: Tensor, bits: int, columns: int, table: Tensor, *, backend: str | None = None) -> Tensor:
    """The level of each code, [N, K] in the dtype of the table.

    codes: [N, K * bits / 8] uint8; columns: K; table: [L] for all rows or [N, L] for each
    raises: as `decode_uniform`
    """
    return BACKENDS.run(DecodeCall("lookup", codes, bits, columns, table), backend)


def decode_vectors(codes: Tensor, bits: int, columns: int, codebook: Tensor, *, backend: str | None = None) -> Tensor:
    """The vectors of a row one after the other, [N, K] in the dtype of the codebook.

    codes: [N, K / D * bits / 8] uint8, numbers of vectors; columns: K; codebook: [2 ** bits, D]
    raises: as `decode_uniform`
    """
    return BACKENDS.run(DecodeCall("vectors", codes, bits, columns, codebook), backend)


def unpacked(packed: Tensor, bits: int, columns: int) -> Tensor:
    """As `pack_bits.unpack`, faster."""
    codes, low, start = None, 0, 0
    for width in pack_bits.PLANES[bits]:
        size = columns * width // 8
        part = _spread(packed[:, start : start + size], width)
        codes = part if codes is None else codes | (part << low)
        low, start = low + width, start + size
    return codes


def _spread(packed: Tensor, width: int) -> Tensor:
    """[N, P] uint8 -> [N, P * 8 / width] uint8. The lowest bits of a word are its first byte."""
    if width == 8:
        return packed
    word, moves = SPREAD[width]
    wide = packed.to(word)
    for up, mask in moves:
        wide = (wide | (wide << up)).bitwise_and_(mask)
    return wide.view(torch.uint8)


def _in_torch(call: DecodeCall) -> Tensor:
    rows = max(1, AT_ONCE // max(1, call.columns)) if call.codes.device.type == "cpu" else max(1, len(call.codes))
    if len(call.codes) <= rows or call.kind != "lookup":
        return _part(call)
    tables = (call.table,) * -(-len(call.codes) // rows) if call.table.ndim == 1 else call.table.split(rows)
    parts = zip(call.codes.split(rows), tables, strict=True)
    return torch.cat([_part(DecodeCall(call.kind, codes, call.bits, call.columns, table)) for codes, table in parts])


def _part(call: DecodeCall) -> Tensor:
    numbers = unpacked(call.codes, call.bits, call.columns // call.width)
    if call.kind == "uniform":
        return numbers.view(torch.int8) - call.table.view(torch.int8)
    if call.kind == "vectors":
        return _moved(numbers.int(), call.table).view(len(numbers), call.columns)
    if call.bits > PAIRED or call.columns % 2:
        return _levels(numbers.int(), call.table[..., None]).view(numbers.shape)
    both = numbers.view(torch.int16).int()  # the first code lies in the lower byte
    both = (both | (both >> (8 - call.bits))).bitwise_and_((1 << 2 * call.bits) - 1)
    shape = (*call.table.shape, call.table.shape[-1])
    pairs = torch.stack((call.table.unsqueeze(-2).expand(shape), call.table.unsqueeze(-1).expand(shape)), -1)
    return _levels(both, pairs.flatten(-3, -2)).view(numbers.shape)


def _levels(at: Tensor, table: Tensor) -> Tensor:
    """at: [N, J] int32; table: [E, D] or [N, E, D] -> [N * J, D]"""
    if table.ndim == 3:
        first = torch.arange(0, table.shape[0] * table.shape[1], table.shape[1], dtype=torch.int32, device=at.device)
        at, table = at.add_(first[:, None]), table.flatten(0, 1)
    return _moved(at, table)


def _moved(at: Tensor, table: Tensor) -> Tensor:
    """Rows `at` of a table [E, D], the numbers of a row as one word where there is one: [J, D]"""
    word = WORDS.get(table.shape[1] * table.element_size())
    if word is None or table.shape[1] == 1:
        return table.index_select(0, at.flatten())
    words = table.contiguous().view(word).flatten().index_select(0, at.flatten())
    return words.view(table.dtype).view(-1, table.shape[1])


BACKENDS = Dispatch(
    "Decoding of quantised weights",
    (
        Backend(triton_decode_codes.NAME, triton_decode_codes.why_not, triton_decode_codes.decode),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
