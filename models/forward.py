"""What is known about one forward of the diffusion model while it runs.

Made by the host's wrapper around `apply_model`, which every model passes, and sent along in a shallow copy of
transformer_options. Attention hooks read it; nothing of it outlives the forward.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .families import Family
from .layout import TokenLayout
from .schedule import Position


class NotVideo(str):
    """Why a call is not the video's self attention: expected, so it is neither logged nor counted as standing aside."""


@dataclass(frozen=True)
class Branch:
    """The rows of the batch that belong to one conditioning entry.

    id: the same in every step of a run, different for each prompt, and for a second evaluation in the same step
    cond: 0 positive, 1 negative, as in `cond_or_uncond`
    rows: rows of the batch
    """

    id: Hashable
    cond: int
    rows: slice


@dataclass(frozen=True)
class Finding:
    """What the outermost hook found out about the running attention call, for the hooks below it.

    layout: what the tokens are, or why that is not known
    q: the very queries that this holds for
    """

    layout: TokenLayout | str
    layer: int | None
    q: Tensor = field(repr=False)


@dataclass
class Forward:
    """One forward: which tokens to expect, where in the run, whose rows.

    expected: layout of the video's self attention, or a sentence why it cannot be told
    batch: rows of the model's batch
    frames: rows that the video's self attention has for each of these: see `Family.frames_in_batch`
    others: token counts of other sequences in this forward, with their names
    window: latent frames of the context window, None outside one
    whole: why no block of this forward may be skipped, None when blocks may
    """

    family: Family | None
    expected: TokenLayout | str
    batch: int
    branches: tuple[Branch, ...] = ()
    position: Position | None = None
    window: Hashable = None
    others: Mapping[int, str] = field(default_factory=dict)
    stacks: Mapping[str, int] = field(default_factory=dict)
    whole: str | None = None
    frames: int = 1
    finding: Finding | None = None   # of the attention call that runs now, None between calls
    _seen: Counter = field(default_factory=Counter, repr=False)

    @property
    def layers(self) -> int:
        """Transformer blocks with video self attention."""
        return sum(self.stacks.values())

    @property
    def rows(self) -> tuple[Branch, ...]:
        """The branches with their rows in the batch of the video's self attention."""
        if self.frames == 1:
            return self.branches
        spread = (slice(b.rows.start * self.frames, b.rows.stop * self.frames) for b in self.branches)
        return tuple(replace(branch, rows=rows) for branch, rows in zip(self.branches, spread, strict=True))

    def explain(self, batch: int, queries: int, keys: int) -> TokenLayout | str:
        """The layout of an attention call with these sizes, or a sentence why it is not the video's self attention."""
        if isinstance(self.expected, str):
            return self.expected
        if queries != keys:
            target = self.others.get(keys, f"{keys} keys")
            return NotVideo(f"cross attention from {queries} tokens to {target}")
        if queries in self.others:
            return NotVideo(f"self attention of {self.others[queries]}")
        if queries != self.expected.tokens:
            return f"{queries} tokens, where the video with all that belongs to it has {self.expected.tokens}"
        if batch != self.batch * self.frames:
            return NotVideo(f"a batch of {batch} where the model has {self.batch * self.frames}")
        return self.expected

    def passed(self, block: int) -> None:
        """Note that a block was left out, so that its number goes to no other: see `number`."""
        self._seen[None] += 1
        self._seen[block] += 1

    def number(self, options: Mapping[str, Any]) -> int:
        """Layer of the video self attention that runs now: 0, 1, ... in order of execution. Call once per call.

        Blocks that tell their index keep it when others are skipped; a second call under the same index (VACE, block
        patches with attention of their own) gets a number above all blocks. Models that tell nothing are counted.
        """
        index = options.get("block_index")
        if index is None:
            self._seen[None] += 1
            return self._seen[None] - 1
        sizes = list(self.stacks.values())
        single = options.get("block_type") == "single" and len(sizes) > 1
        layer = index + (sizes[0] if single else 0)
        self._seen[layer] += 1
        return layer + (self._seen[layer] - 1) * max(self.layers, 1)
