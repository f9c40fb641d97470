"""Several prompts in one CONDITIONING, for nodes that sample each of them by itself."""

from __future__ import annotations

PARTS = ("area", "mask", "start_percent", "end_percent")  # of an entry that is one part of a prompt, in place or time


def each_prompt(conditioning: list) -> list[list]:
    """One CONDITIONING for each entry, as Conditioning (Combine) puts them together; the whole where entries share the
    picture or the run among them.
    """
    if any(part in options for _, options in conditioning for part in PARTS):
        return [conditioning]
    return [[entry] for entry in conditioning]
