"""Where each model family stands a step cache: starting points by family and by length of the schedule.

The general rows and the families' are those of the papers and of ports to ComfyUI, in this pack's terms:

    TaylorSeer (arXiv 2503.06923) and its repository: HunyuanVideo and Wan 2.1 5, FLUX 6 with 3 steps at the start, all
    at 50 steps with order 1; its issue 12: Wan at 30 steps needs 10 at the start. Later papers' tables (SeaCache,
    Spectrum, TC-Pade) show it collapse at 20 steps with 4 or 5, and Wan 1.3B first. MagCache keeps the first 20 to 25 %
    of the steps. Ports for LTX-2 keep 6 of 20 steps and Spectrum's for MiniMax-H3 runs 11 of 20.

So every interval here is shorter than the paper's, and warm-up and tail are longer.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..families import Family
from ..schedule import Schedule

FEW_STEPS = 12   # below, a step is as long as two or three of the shortest schedule that any of the papers skips in
EDGE = 0.02      # share of the noise range within which a run begins or ends at its edge
FRESH = 2        # warm-up of a run that begins inside the noise range: the layout is settled, only history is missing
FEW = (
    "a schedule of {} steps has strides too long to forecast over; from {} steps on some are left out, or with an "
    "interval or a warm-up set by hand"
)


@dataclass(frozen=True)
class Preset:
    """interval: one run in so many steps    first, last: steps that always run    site: see `sites`

    why: why nothing is to be left out unless the user has set interval or warm-up, None where something may be
    """

    name: str
    interval: int
    first: int
    last: int
    site: str = "output"
    why: str | None = None


@dataclass(frozen=True)
class Row:
    """families: none: all others    steps: of the whole noise range, from which on the row counts

    first: warm-up as a share of the steps of the whole range    least: and at least so many steps
    """

    families: tuple[str, ...]
    steps: int
    interval: int
    first: float
    least: int
    last: int
    site: str = "output"


# Of two rows of a family the one with more steps counts; the general ones where a family has none.
TABLE = (
    #   families                           steps  interval first least last
    Row((),                                    0, 2, 0.25, 2, 2),
    Row((),                                   40, 4, 0.10, 4, 1),
    Row(("wan", "wan_5b"),                    31, 4, 0.20, 4, 2),
    Row(("wan_s2v", "wan_humo", "wan_scail"), 12, 2, 0.25, 2, 2),
    Row(("hunyuan_video",),                   30, 4, 0.10, 4, 1),
    Row(("hunyuan_video_15",),                30, 3, 0.10, 4, 1),
    Row(("cogvideox",),                       40, 3, 0.10, 4, 1),
    Row(("ltxv",),                            12, 2, 0.25, 2, 2),
    Row(("ltxav",),                           12, 2, 0.30, 2, 2),
    Row(("mochi",),                           40, 4, 0.125, 4, 2),
    Row(("cosmos", "cosmos_predict2"),        30, 3, 0.15, 4, 2),
    Row(("kandinsky5",),                      40, 4, 0.10, 4, 1),
    Row(("minimax_h3",),                      12, 2, 0.20, 2, 1),
    Row(("flux",),                            20, 3, 0.15, 3, 1),
    Row(("flux",),                            40, 6, 0.06, 3, 1),
)  # fmt: skip


def preset_of(family: Family | None, schedule: Schedule) -> Preset:
    """The preset of a model family for a run, which may see a part of the noise range: a stage of Wan 2.2, or denoise
    below 1."""
    steps = full_steps(schedule)
    rows = [row for row in TABLE if family is not None and family.name in row.families and row.steps <= steps]
    row = max(rows or [row for row in TABLE if not row.families and row.steps <= steps], key=lambda row: row.steps)
    begins = schedule.percent_of(schedule.sigmas[0]) <= EDGE if schedule.sigmas else True
    ends = schedule.percent_of(schedule.sigmas[-1]) >= 1 - EDGE if schedule.sigmas else True
    return Preset(
        f"{family.name if rows else 'any model'} from {max(row.steps, FEW_STEPS)} steps",
        row.interval,
        max(round(row.first * steps), row.least) if begins else FRESH,
        row.last if ends else 0,
        row.site,
        FEW.format(steps, FEW_STEPS) if steps < FEW_STEPS else None,
    )


def full_steps(schedule: Schedule) -> int:
    """Steps that the whole noise range would have at the run's mean stride: 20 for 10 steps over one half of it."""
    if not schedule.steps:
        return 0
    covered = schedule.percent_of(schedule.sigmas[-1]) - schedule.percent_of(schedule.sigmas[0])
    return max(round(schedule.steps / covered), schedule.steps) if covered > EDGE else schedule.steps
