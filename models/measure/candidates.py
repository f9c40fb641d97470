"""Which methods a meter tries, at which densities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kernels.attend_call import Tail
from ..attention import METHODS, Blocks, Job, SparseAttention
from ..call import AttentionCall

AUTO = "auto"
ALL = "all"


@dataclass(frozen=True)
class Candidate:
    """A method at a density. density: share of the video-to-video blocks; None: the method's own rule, or the preset"""

    name: str
    density: float | None
    sparse: SparseAttention

    def job(self, call: AttentionCall, memo: dict) -> Job:
        own = None if self.sparse.method.own_rule else self.sparse.settled(call).preset.density
        return self.sparse.job(call, self.density or own, memo)


def candidates(
    names: Sequence[str], densities: Sequence[float | None], blocks: Blocks, tail: Tail | None
) -> tuple[Candidate, ...]:
    """Every method at every density, with the method's other settings at their defaults."""
    return tuple(
        Candidate(name, density, SparseAttention(METHODS[name](density=density or 0.0), blocks=blocks, tail=tail))
        for name in names
        for density in densities
    )


def middle_density(densities: Sequence[float | None]) -> float | None:
    """The density nearest to the middle of what was asked for; None where only the methods' own rules were."""
    known = sorted(density for density in densities if density is not None)
    return min(known, key=lambda density: abs(density - (known[0] + known[-1]) / 2)) if known else None


def asked(density: float | None) -> str:
    """A density as the user writes it."""
    return AUTO if density is None else f"{density:g}"


def parse_methods(text: str) -> tuple[str, ...]:
    """Names from "draft, svg2"; every method for "all".

    raises: ValueError that says what is accepted
    """
    names = _items(text)
    if names == [ALL]:
        return tuple(METHODS)
    if wrong := [name for name in names if name not in METHODS]:
        raise ValueError(f"Methods: {wrong[0]!r} is none. Accepted: all, or some of {', '.join(METHODS)}.")
    if not names:
        raise ValueError(f"Methods: none is named. Accepted: all, or some of {', '.join(METHODS)}.")
    return tuple(names)


def parse_densities(text: str) -> tuple[float | None, ...]:
    """Numbers from "0.5, 0.3"; None for "auto".

    raises: ValueError that says what is accepted
    """
    found = [_density(item) for item in _items(text)]
    if not found:
        raise ValueError("Densities: none is given. Accepted: numbers above 0 and at most 1, or auto, such as 0.5, 0.3")
    return tuple(found)


def _density(item: str) -> float | None:
    if item == AUTO:
        return None
    try:
        value = float(item)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(
            f"Densities: {item!r} is none. Accepted: numbers above 0 and at most 1 with commas between them, or auto "
            "for each method's own rule, for example 0.5, 0.3, auto."
        )
    return value


def _items(text: str) -> list[str]:
    """What stands between commas or line ends, in lower case, each once."""
    parts = (part.strip().lower() for part in text.replace(";", ",").replace("\n", ",").split(","))
    return list(dict.fromkeys(part for part in parts if part))
