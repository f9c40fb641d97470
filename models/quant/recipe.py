"""Which format and width each layer of a model takes."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .format import FORMATS

Shape = tuple[int, int]


@dataclass(frozen=True, order=True)
class Choice:
    """format: a name of FORMATS
    bits: one of its widths
    raises: ValueError for what is not there
    """

    format: str
    bits: int

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"There is no weight format {self.format!r}. Accepted: {', '.join(FORMATS)}.")
        if self.bits not in FORMATS[self.format].widths:
            widths = ", ".join(map(str, FORMATS[self.format].widths))
            raise ValueError(f"{FORMATS[self.format].label} has no width of {self.bits} bits. Accepted: {widths}.")

    def __str__(self) -> str:
        return f"{self.format} {self.bits}"

    @property
    def label(self) -> str:
        """For the user: "ViDiT-Q 4-bit"."""
        return f"{FORMATS[self.format].label} {self.bits}-bit"

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The inverse of str: "vidit_q 4". raises: ValueError"""
        name, _, bits = text.rpartition(" ")
        if not bits.isdigit():
            raise ValueError(f"A choice of format and width is written like 'vidit_q 4', not {text!r}.")
        return cls(name, int(bits))


@dataclass(frozen=True)
class Recipe:
    """layers: choice of each layer; layers that are absent stay as they are"""

    layers: Mapping[str, Choice] = field(default_factory=dict)

    @classmethod
    def same(cls, layers: Iterable[str], choice: Choice) -> Recipe:
        """One choice for all layers."""
        return cls(dict.fromkeys(layers, choice))

    def why_not(self, shapes: Mapping[str, Shape]) -> str | None:
        """Why these layers cannot be kept so, or None; names the first layer."""
        for layer, choice in self.layers.items():
            if layer not in shapes:
                return f"there is no layer {layer}"
            if reason := FORMATS[choice.format].why_not(shapes[layer], choice.bits):
                return f"{layer} {list(shapes[layer])} cannot be kept as {choice}: {reason}"
        return None

    def nbytes(self, shapes: Mapping[str, Shape]) -> int:
        """Bytes of the layers; those without a choice at 16 bits a weight."""
        total = 0
        for layer, (rows, columns) in shapes.items():
            choice = self.layers.get(layer)
            total += FORMATS[choice.format].size((rows, columns), choice.bits) if choice else 2 * rows * columns
        return total

    def bits_per_weight(self, shapes: Mapping[str, Shape]) -> float:
        """Mean bits per weight of these layers, with scales and tables."""
        return 8 * self.nbytes(shapes) / max(1, sum(rows * columns for rows, columns in shapes.values()))
