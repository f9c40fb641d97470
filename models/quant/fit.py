"""Whether a run fits on a card: bytes of the weights in each format, what must stay on the card, what can stream in.

Arithmetic on sizes alone; `models/host/fit_facts.py` asks ComfyUI for them.
"""
# N outputs   K inputs

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .format import FORMATS
from .linear import AT_ONCE
from .recipe import Choice, Recipe

Shape = tuple[int, int]

GIB = 2**30  # what makers of cards call a GB
CONTROL = "rtn"  # the format that others are measured against; nobody is told to take it
PCIE = 25e9  # bytes a second from memory to the card: PCIe 4.0 with 16 lanes has 32 on paper, 24 to 26 are seen
DECODING = 16  # bytes a weight of a part that is decoded, above the result: 12 to 16 by the trace of torch's allocator
PART = AT_ONCE["cuda"]  # weights that are decoded together
LAYERS_AHEAD = 2  # on the card while weights stream: the one that computes and the one that arrives


@dataclass(frozen=True)
class Scratch:
    """Bytes that a linear layer takes besides its input and its output.

    before: until its weight is ready    during: while it multiplies    per_input: the same, for each number that enters
    """

    before: int = 0
    during: int = 0
    per_input: int = 0


@dataclass(frozen=True)
class Stored:
    """The weights of a model as they are now.

    shapes: of the layers that formats are for, by name    weights: their bytes, without biases
    coded: those of them that are quantised    others: bytes of everything else, by module, biases with it
    act_bits: of the activations of quantised layers
    """

    shapes: Mapping[str, Shape]
    weights: Mapping[str, int]
    others: Mapping[str, int]
    coded: frozenset[str] = frozenset()
    act_bits: int = 8


@dataclass(frozen=True)
class Weights:
    """Bytes. coded: of quantised layers    others: of all the rest    largest: of the largest single layer"""

    coded: int
    others: int
    largest: int

    @property
    def total(self) -> int:
        return self.coded + self.others


def recipe_for(stored: Stored, choice: Choice) -> Recipe:
    """One choice for all layers that it can be had for."""
    why_not = FORMATS[choice.format].why_not
    return Recipe.same([name for name, shape in stored.shapes.items() if not why_not(shape, choice.bits)], choice)


def weights_of(stored: Stored, recipe: Recipe | None) -> Weights:
    """recipe: what to quantise; None: as it is. raises: ValueError for a recipe that does not fit the layers"""
    if recipe is None:
        sizes, coded = stored.weights, stored.coded
    else:
        if reason := recipe.why_not(stored.shapes):
            raise ValueError(f"the plan does not fit this model: {reason}. Plan for this model.")
        planned = {name: FORMATS[choice.format].size(stored.shapes[name], choice.bits)
                   for name, choice in recipe.layers.items()}  # fmt: skip
        sizes, coded = {**stored.weights, **planned}, {*stored.coded, *planned}
    quantised = sum(size for name, size in sizes.items() if name in coded)
    largest = max((*sizes.values(), *stored.others.values()), default=0)
    return Weights(quantised, sum(sizes.values()) - quantised + sum(stored.others.values()), largest)


def scratch_of(stored: Stored, coded: frozenset[str], act_bits: int, item: int) -> dict[str, Scratch]:
    """What layers take while they compute. coded: the quantised ones    item: bytes of a number that is computed in

    Activations of 8 bits count as with a kernel that rounds and multiplies; plain torch takes 0.5 GB more. Other layers
    take a copy of their weight where it is stored in another size.
    """
    found = {}
    for name, (rows, columns) in stored.shapes.items():
        count = rows * columns
        if name in coded:
            ready = count if act_bits == 8 else item * count
            found[name] = Scratch(ready + DECODING * min(count, PART), ready, 1 if act_bits == 8 else 0)
        elif stored.weights[name] != item * count:
            found[name] = Scratch(0, item * count)
    return found


@dataclass(frozen=True)
class Need:
    """What one way to keep the weights takes on the card, in bytes.

    activations: of one evaluation of the model    prompts: that it evaluates at once
    history: of patches, all through the run    reserve: left for others
    """

    name: str
    weights: Weights
    activations: int
    prompts: int = 1
    history: int = 0
    reserve: int = 0

    @property
    def whole(self) -> int:
        """With all weights on the card."""
        return self.weights.total + self.beside

    @property
    def beside(self) -> int:
        """All but the weights."""
        return self.activations + self.history + self.reserve

    @property
    def least(self) -> int:
        """With weights that stream layer by layer, and prompts one after the other."""
        streaming = min(self.weights.total, LAYERS_AHEAD * self.weights.largest)
        return streaming + -(-self.activations // self.prompts) + self.history + self.reserve

    def streamed(self, card: int) -> int:
        """Bytes of weights that come over the bus in each evaluation; 0 where all stay."""
        if self.whole <= card:
            return 0
        kept = card - self.beside - LAYERS_AHEAD * self.weights.largest
        return self.weights.total - max(0, kept)


@dataclass(frozen=True)
class Decoding:
    """The VAE's turn, when the model has made way. weights: of the VAE    whole, tiled: core's estimates"""

    weights: int
    whole: int
    tiled: int
    reserve: int = 0


def gb(count: float) -> str:
    """14.3 GB; 0.04 GB"""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2f} GB"


def verdict(need: Need, card: int) -> str:
    """One sentence. card: bytes"""
    if need.whole <= card:
        return f"fits: {gb(need.whole)} of {gb(card)}, all weights stay on the card"
    if need.least <= card:
        streamed = need.streamed(card)
        return (f"fits with {gb(streamed)} of the weights in main memory; each evaluation of the model brings "
                f"them over the bus, {streamed / PCIE:.1f} s at {PCIE / 1e9:.0f} GB/s unless computing hides it")
    return (f"does not fit: {gb(need.least)} are needed with weights that stream layer by layer, "
            f"{gb(card)} are there")  # fmt: skip


def remedies(need: Need, others: list[Need], card: int, frames: int) -> list[str]:
    """What would make the run fit with all weights on the card. others: other ways to keep the weights, the best first
    frames: latent frames of the clip
    """
    if need.whole <= card:
        return []
    found: list[str] = []
    room = card - need.whole + need.activations
    fewer = int(frames * room / need.activations) if need.activations else 0
    better = next((other for other in others if other.whole <= card), None)
    if better:
        found.append(f"{better.name} fits as a whole ({gb(better.whole)})")
    if 1 <= fewer < frames:
        found.append(f"{fewer} latent frames instead of {frames} fit as a whole")
    if not found:
        least = min((need, *others), key=lambda other: other.least)
        found.append(f"nothing fits as a whole; {least.name} streams least, {gb(least.streamed(card))}"
                     if least.least <= card else
                     "nothing fits; take a smaller or shorter clip, or a larger card")
    return found


def decode_verdict(turn: Decoding, card: int) -> str:
    """One sentence on the VAE."""
    whole, tiled = (turn.weights + size + turn.reserve for size in (turn.whole, turn.tiled))
    if whole <= card:
        return f"decoding fits: {gb(whole)}, when the model has made way"
    if tiled <= card:
        return f"decoding needs {gb(whole)} at once: take VAE Decode (Tiled), about {gb(tiled)}"
    return f"decoding needs {gb(whole)} at once and {gb(tiled)} in tiles of 512: take smaller tiles"


@dataclass(frozen=True)
class Fit:
    """All that is told of a run. chosen: what was asked for    others: other ways to keep the weights, the best first

    core: ComfyUI's own estimate of the activations    scores: bytes of the largest attention scores, were they written
    rows: tokens of all prompts, 0 when not known
    notes: what else a reader must know
    """

    card: int
    chosen: Need
    others: tuple[Need, ...]
    frames: int
    core: int
    scores: int = 0
    rows: int = 0
    decoding: Decoding | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """In two or three words."""
        if self.chosen.whole <= self.card:
            return "fits"
        return "fits while weights stream" if self.chosen.least <= self.card else "does not fit"

    def lines(self) -> list[str]:
        """The verdict in words, the most important first."""
        told = [f"{self.chosen.name}: {verdict(self.chosen, self.card)}",
                *remedies(self.chosen, list(self.others), self.card, self.frames)]  # fmt: skip
        if self.decoding:
            told.append(decode_verdict(self.decoding, self.card))
        return [*told, *self.notes]


def details(fit: Fit) -> list[str]:
    """Where the figures of what was asked for come from, a line each."""
    need = fit.chosen
    prompts = f"{need.prompts} prompt{'s' * (need.prompts > 1)} at once"
    tokens = f", up to {fit.rows} tokens of video or text" if fit.rows else ""
    lines = [
        f"weights: {gb(need.weights.total)}, of which quantised {gb(need.weights.coded)}; largest layer "
        f"{gb(need.weights.largest)}",
        f"activations: {gb(need.activations)} for one evaluation of {prompts}{tokens}; ComfyUI counts on "
        f"{gb(fit.core)}",
    ]
    if fit.scores:
        lines.append(f"attention: a kernel that keeps no scores is counted on; written down they would be "
                     f"{gb(fit.scores)}")  # fmt: skip
    lines += [f"kept by caches: {gb(need.history)}"] if need.history else []
    lines.append(f"reserve of ComfyUI: {gb(need.reserve)}")
    lines.append("the text encoder is not counted: it makes way before sampling")
    return lines
