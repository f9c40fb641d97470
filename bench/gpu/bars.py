"""What was promised, beside what was measured: "Done means" as a list of figures over the rows.

A figure that a stage did not leave reads "not measured". Where its rows come from: attention.py, steps.py and
step_runs.py; and, with `compiled` and `share` in them,

lengths     kernels compiled after the first of ten lengths in one process
first_call  time of the first call after a warm-up over one in steady state, less one
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

WAN, HUNYUAN = "wan720", "hunyuan720"
OURS, KERNEL = "draft double, all in", "pairs, tail row"  # query blocks of 128, as the whole steps have them
SINGLE, SINGLE_KERNEL = "draft, all in", "blocks, tail row"


@dataclass(frozen=True)
class Bar:
    """least: the figure has to be that or more    most: that or less    one of both is given"""

    text: str
    figure: Callable[[list[dict]], float | None]
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return value >= self.least if self.most is None else value <= self.most

    def accepted(self) -> str:
        return f">= {self.least:g}" if self.most is None else f"<= {self.most:g}"


def value(rows: list[dict], field: str, **key) -> float | None:
    """The field of the last row with these values that has it."""
    found = [row[field] for row in rows if row.get(field) is not None and "failed" not in row
             and all(row.get(name) == wanted for name, wanted in key.items())]  # fmt: skip
    return found[-1] if found else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def attention(field: str, what: str, density: float) -> Callable[[list[dict]], float | None]:
    return lambda rows: value(rows, field, what=what, shape=WAN, setting=f"density {density:g}")


def over(field: str, above: str, below: str, density: float) -> Callable[[list[dict]], float | None]:
    """A field of one contender over the same of another, attention at Wan 720p."""
    both = [attention(field, what, density) for what in (above, below)]
    return lambda rows: ratio(*(figure(rows) for figure in both))


def whole_run(shape: str, cache: bool) -> Callable[[list[dict]], float | None]:
    """Speedup of 50 steps by the presets, weights as they are."""

    def figure(rows: list[dict]) -> float | None:
        return value([row for row in rows if str(row.get("setting")).startswith("sparse")
                      and str(row["setting"]).endswith("cache") == cache],
                     "speedup", what="run", shape=shape, preset_density=True)  # fmt: skip

    return figure


def peak(shape: str) -> Callable[[list[dict]], float | None]:
    def figure(rows: list[dict]) -> float | None:
        sparse, dense = (value(rows, "peak_gb", what="step", shape=shape, setting=setting)
                         for setting in ("sparse 0.2", "dense"))  # fmt: skip
        return ratio(sparse, dense)

    return figure


def overhead(shape: str) -> Callable[[list[dict]], float | None]:
    return lambda rows: value(rows, "share", what="overhead", shape=shape)


def compiled(rows: list[dict]) -> float | None:
    return value(rows, "compiled", what="lengths")


def first_call(rows: list[dict]) -> float | None:
    return value(rows, "share", what="first_call")


BARS = (
    Bar("Attention, Wan 720p, density 0.2, selection included: speed over the best dense",
        attention("x_dense", OURS, 0.2), least=3.5),
    Bar("The same at density 0.1", attention("x_dense", OURS, 0.1), least=6.0),
    Bar("Density 0.2 with query blocks of 64", attention("x_dense", SINGLE, 0.2), least=3.5),
    Bar("Density 0.1 with query blocks of 64", attention("x_dense", SINGLE, 0.1), least=6.0),
    Bar("Efficiency of the kernel at density 0.2", attention("efficiency", KERNEL, 0.2), least=0.75),
    Bar("Efficiency of the kernel at density 0.1", attention("efficiency", KERNEL, 0.1), least=0.75),
    Bar("Efficiency at density 0.2 with query blocks of 64", attention("efficiency", SINGLE_KERNEL, 0.2), least=0.75),
    Bar("Speed over sol_attn, density 0.2, both with selection", over("ms", "sol_attn", OURS, 0.2), least=1.0),
    Bar("Speed over sol_attn, density 0.1, both with selection", over("ms", "sol_attn", OURS, 0.1), least=1.0),
    Bar("Error over that of sol_attn, density 0.2", over("error", OURS, "sol_attn", 0.2), most=1.0),
    Bar("Error over that of sol_attn, density 0.1", over("error", OURS, "sol_attn", 0.1), most=1.0),
    Bar("Speed over FlexAttention with the same mask, density 0.2", over("ms", "flex 64", SINGLE_KERNEL, 0.2),
        least=1.3),
    Bar("The same with query blocks of 128", over("ms", "flex 128", KERNEL, 0.2), least=1.3),
    Bar("HunyuanVideo 720p, 50 steps: sparse", whole_run(HUNYUAN, False), least=2.3),
    Bar("HunyuanVideo 720p, 50 steps: sparse and cache", whole_run(HUNYUAN, True), least=5.0),
    Bar("Wan 720p, 50 steps: sparse", whole_run(WAN, False), least=1.9),
    Bar("Wan 720p, 50 steps: sparse and cache", whole_run(WAN, True), least=4.0),
    Bar("Peak memory of sparse over dense, Wan 720p", peak(WAN), most=1.03),
    Bar("Peak memory of sparse over dense, HunyuanVideo 720p", peak(HUNYUAN), most=1.03),
    Bar("Kernels compiled over ten lengths, after the first", compiled, most=0),
    Bar("First call after a warm-up, above steady state", first_call, most=0.05),
    Bar("The pack's own overhead on a step, Wan 720p", overhead(WAN), most=0.01),
    Bar("The pack's own overhead on a step, HunyuanVideo 720p", overhead(HUNYUAN), most=0.01),
)  # fmt: skip


def judged(content: dict) -> Iterator[tuple[Bar, float | None, str]]:
    """Each bar with its figure and "met", "not met" or "not measured". content: of Record"""
    rows = [row for stage in content["stages"].values() for row in stage["rows"]]
    for bar in BARS:
        found = bar.figure(rows)
        yield bar, found, "not measured" if found is None else "met" if bar.met(found) else "not met"


def lines(content: dict) -> list[str]:
    """Lines of a Markdown table. Tiny sizes are not judged."""
    if content["smoke"]:
        return ["Not judged: the sizes are tiny."]
    head = ["| what | accepted | measured | |", "| --- | --- | --- | --- |"]
    return head + [f"| {bar.text} | {bar.accepted()} | {'' if found is None else f'{found:.3g}'} | {verdict} |"
                   for bar, found, verdict in judged(content)]  # fmt: skip
