"""What a weight format is, and the list of them. A format is one file: its settings as a frozen dataclass.

Encoding happens once, decoding with every use. So settings matter only to `encode`; what is needed to decode lies in
the `Coded` weight, and the methods that read one use nothing of `self`.
"""
# N outputs   K inputs

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from torch import Tensor

from .basis import Basis
from .stats import LayerStats

ACT_BITS = (8, 16)  # activations rounded to int8 per token; or left as they are


@dataclass(frozen=True)
class Coded:
    """A quantised weight of a linear layer: W = basis.original(scale * values), values by the format.

    format: name of the format
    bits: per weight
    shape: (N, K)
    codes: [N, bytes] uint8, `kernels.pack_bits`; [N, K] int8 for 8 bits
    scale: [N, 1] float32
    table: what else the format decodes with, of a shape that depends on format, bits and (N, K) alone; None: nothing
    """

    format: str
    bits: int
    shape: tuple[int, int]
    codes: Tensor
    scale: Tensor
    table: Tensor | None = None
    basis: Basis = field(default_factory=Basis)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(x.nbytes for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names that files and layouts have for them."""
        named = {"": self.codes, "_scale": self.scale, "_table": self.table, "_mask": self.basis.mask,
                 "_turns": self.basis.turns, "_order": self.basis.order}  # fmt: skip
        return {name: x for name, x in named.items() if x is not None}


class Format:
    """A way to keep weights in few bits.

    label, summary: shown to the user
    widths: bits per weight that it offers
    needs: what `encode` is told by a calibration: "" nothing, "stats" gains from it
    side: at these widths and below a LoRA is added beside the weight, since rounding would swallow it
    table_by_row: a table of N rows has one for each row of the weight
    """

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    widths: ClassVar[tuple[int, ...]]
    needs: ClassVar[str] = ""
    side: ClassVar[int] = 6  # a LoRA's effect, rounded into 6 bits: cosine 0.988, beside: 0.997 (bench/quant/lora.py)
    table_by_row: ClassVar[bool] = True

    def why_not(self, shape: tuple[int, int], bits: int) -> str | None:
        """Why a layer of this shape cannot be kept in this format and width, or None."""
        raise NotImplementedError

    def encode(self, weight: Tensor, bits: int, stats: LayerStats | None = None) -> Coded:
        """weight: [N, K] in any float dtype. The same input gives the same codes.

        raises: ValueError for a weight that is not finite, see `check_finite`
        """
        raise NotImplementedError

    def recode(self, coded: Coded, weight: Tensor, seed: int = 0) -> Coded:
        """Another weight of the same layer in the basis and with the tables of `coded`, as fast as it can be: for a
        LoRA on every load. seed: above 0, rounds to the values on both sides by chance, so that small changes survive
        on average.
        """
        raise NotImplementedError

    def values(self, coded: Coded) -> Tensor:
        """[N, K] float32 in the coded basis, before the scale."""
        raise NotImplementedError

    def integers(self, coded: Coded) -> tuple[Tensor, Tensor]:
        """The weight in the coded basis as [N, K] int8 with a scale [N, 1], for int8 products."""
        raise NotImplementedError

    def why_not_table(self, coded: Coded) -> str | None:
        """Why the table of a weight cannot be one that this format writes, or None; shapes and dtypes only."""
        raise NotImplementedError

    def size(self, shape: tuple[int, int], bits: int, stats: LayerStats | None = None) -> int:
        """Bytes of a layer of this shape, without encoding it."""
        raise NotImplementedError


FORMATS: dict[str, Format] = {}  # with their default settings


def weight_format(name: str) -> Callable[[type[Format]], type[Format]]:
    """Register a format under a name."""

    def register(cls: type[Format]) -> type[Format]:
        cls.name = name
        FORMATS[name] = cls()
        return cls

    return register


def dense(coded: Coded) -> Tensor:
    """The weight [N, K] in float32, in the original basis."""
    values = FORMATS[coded.format].values(coded)
    return coded.basis.original(values * coded.scale)


def check_finite(weight: Tensor) -> None:
    """raises: ValueError for a weight that no format can keep"""
    if not bool(weight.isfinite().all()):
        raise ValueError("The weight holds values that are not finite (NaN or infinite), and no format can keep them. "
                         "Leave the layer as it is, or take another file.")  # fmt: skip


def rows_of(coded: Coded, start: int, stop: int) -> Coded:
    """Rows `start` to `stop` of a weight as a weight of their own, for what would not fit in memory at once."""
    table = coded.table
    if table is not None and table.ndim == 2 and len(table) == coded.shape[0] and FORMATS[coded.format].table_by_row:
        table = table[start:stop]
    shape = (len(range(coded.shape[0])[start:stop]), coded.shape[1])
    return replace(coded, shape=shape, codes=coded.codes[start:stop], scale=coded.scale[start:stop], table=table)


def settings(form: Format) -> dict:
    """Settings of a format, for files."""
    return {setting.name: getattr(form, setting.name) for setting in fields(form)}
