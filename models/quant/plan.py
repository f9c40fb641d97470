"""A plan of mixed precision: a format and width for each layer, with the measurement it rests on, as a JSON file.

The measurement goes with it, so that another budget needs no other run.
"""
# L layers   C choices   M metrics, `sensitivity.METRICS`

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import allocate
from .format import FORMATS
from .layers import block_of_layer, natural
from .recipe import Choice, Recipe
from .sensitivity import METRICS, Findings, Trial, predicted
from .stats import LayerStats

MARK, VERSION = "interspatial_quant_plan", 1
Shape = tuple[int, int]


@dataclass(frozen=True)
class Option:
    """A layer kept in one of its choices. nbytes: of it; errors: [M], shares of the energy of the model's output"""

    nbytes: int
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """What each layer costs with each choice.

    shapes, options: of each layer
    seen: [M], which metrics the runs have shown
    about: of the model and the runs, for the reader
    """

    shapes: Mapping[str, Shape]
    options: Mapping[str, Mapping[Choice, Option]]
    seen: tuple[bool, ...] = (True,) * len(METRICS)
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Number of weights in all layers."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All that some layer may take, the widest first."""
        found = {choice for options in self.options.values() for choice in options}
        return tuple(sorted(found, key=lambda choice: (-choice.bits, choice.format)))

    def problem(self, least_ends: int = 0) -> allocate.Problem:
        """For `allocate`. least_ends: bits that layers of the first and last block of each stack have at least"""
        choices, ends = self.choices, end_layers(self.shapes)
        nbytes = torch.zeros(len(self.shapes), len(choices), dtype=torch.int64)
        errors = torch.zeros(len(self.shapes), len(choices), len(METRICS), dtype=torch.float64)
        allowed = torch.zeros_like(nbytes, dtype=torch.bool)
        for i, layer in enumerate(self.shapes):
            for c, choice in enumerate(choices):
                if option := self.options[layer].get(choice):
                    nbytes[i, c], errors[i, c] = option.nbytes, torch.tensor(option.errors)
                    allowed[i, c] = layer not in ends or choice.bits >= least_ends
            if not allowed[i].any():
                raise ValueError(f"no candidate has the {least_ends} bits that the first and last block are to have at "
                                 "least. Lower that number, or take candidates with more bits")  # fmt: skip
        return allocate.Problem(nbytes, errors, allowed)


@dataclass(frozen=True)
class Plan:
    """measured: what it rests on
    chosen: the choice of each layer
    about: "budget" in bytes, "counted" weights of the metrics [M], "least_ends" bits
    """

    measured: Measured
    chosen: Mapping[str, Choice]
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """For whoever quantises."""
        return Recipe(dict(self.chosen))

    @property
    def rows(self) -> list[tuple[str, Choice, Option]]:
        """Layer, choice, and what it costs."""
        return [(layer, choice, self.measured.options[layer][choice]) for layer, choice in self.chosen.items()]

    @property
    def nbytes(self) -> int:
        return sum(option.nbytes for *_, option in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Mean, with scales and tables."""
        return 8 * self.nbytes / max(1, self.measured.weights)

    @property
    def errors(self) -> tuple[float, ...]:
        """[M], predicted for all layers together."""
        return _summed(option for *_, option in self.rows)

    @property
    def histogram(self) -> Counter:
        """Layers by choice."""
        return Counter(self.chosen.values())

    def uniform(self) -> tuple[Choice, int, tuple[float, ...]] | None:
        """The best single choice for all layers within the budget: itself, its bytes, its predicted errors. None: none
        fits. Bits that were asked for the ends are not asked of it.
        """
        problem = self.measured.problem()
        c = problem.uniform(self.about["budget"], problem.even(list(self.about["counted"])))
        if c is None:
            return None
        return self.measured.choices[c], int(problem.nbytes[:, c].sum()), tuple(problem.errors[:, c].sum(0).tolist())

    def why_not(self, shapes: Mapping[str, Sequence[int]]) -> str | None:
        """Why this is no plan for a model with these layers, or None; names the first layer."""
        for layer, shape in self.measured.shapes.items():
            if layer not in shapes:
                return f"the model has no layer {layer}"
            if tuple(shapes[layer]) != shape:
                return f"{layer} is {list(shapes[layer])} in the model, {list(shape)} in the plan"
        return None

    def save(self, path: str | Path) -> None:
        """Write a file that is there as a whole or not at all; an older one of that name is replaced.

        raises: OSError of the disk
        """
        path, measured = Path(path), self.measured
        layers = {
            layer: {"shape": list(shape), "choice": str(self.chosen[layer]),
                    "options": {str(c): [x.nbytes, *x.errors] for c, x in measured.options[layer].items()}}
            for layer, shape in measured.shapes.items()
        }  # fmt: skip
        content = {MARK: VERSION, "measured": dict(measured.about), "about": dict(self.about),
                   "metrics": list(METRICS), "seen": list(measured.seen), "layers": layers}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def measured_of(found: Findings, trials: Iterable[Trial], choices: Mapping[str, tuple[Choice, ...]],
                stats: Mapping[str, LayerStats], **about) -> Measured:
    """What the runs have shown. choices: that each layer may take"""
    table = predicted(found, trials, choices)
    shapes = {layer: found.shapes[layer] for layer in sorted(table, key=natural)}
    options = {
        layer: {choice: Option(_size(shape, choice, stats.get(layer)), table[layer][choice])
                for choice in choices[layer]}
        for layer, shape in shapes.items()
    }  # fmt: skip
    return Measured(shapes, options, found.seen, about)


def make_plan(measured: Measured, budget: int, weights: Sequence[float], least_ends: int = 0) -> Plan:
    """The plan of least error.

    budget: bytes of all layers
    weights: [M], how much each metric counts; those that were not seen count nothing
    raises: ValueError when no plan fits, or nothing counts
    """
    counted = [weight if seen else 0.0 for weight, seen in zip(weights, measured.seen, strict=True)]
    if min(counted) < 0 or not sum(counted):
        raise ValueError("the weights of content, motion and text that were measured are all 0, or one is below 0. "
                         "Give one of them a weight")  # fmt: skip
    chosen = allocate.plan(measured.problem(least_ends), budget, counted).tolist()
    choices = measured.choices
    named = {layer: choices[c] for layer, c in zip(measured.shapes, chosen, strict=True)}
    about = {"budget": budget, "counted": counted, "least_ends": least_ends}
    return Plan(measured, named, about)


def end_layers(layers: Iterable[str]) -> set[str]:
    """Layers of the first and last block of each stack."""
    numbers: dict[str, list[int]] = {}
    places = {layer: place for layer in layers if (place := block_of_layer(layer))}
    for stack, number in places.values():
        numbers.setdefault(stack, []).append(number)
    return {layer for layer, (stack, number) in places.items() if number in (min(numbers[stack]), max(numbers[stack]))}


def load_plan(path: str | Path) -> Plan:
    """The plan in a file.

    raises: ValueError that names the file and says what is wrong with it
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or MARK not in content:
            raise ValueError("it holds no plan")
        if content[MARK] != VERSION or content["metrics"] != list(METRICS):
            raise ValueError(f"its format is version {content[MARK]}, this pack reads version {VERSION}")
        return _plan(content)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"{error} is missing in it" if isinstance(error, KeyError) else error
        raise ValueError(
            f"The plan {path} cannot be used: {said}. Accepted: files that Plan Mixed Precision wrote; plan again, or "
            "copy the file again."
        ) from error


def _plan(content: dict) -> Plan:
    shapes, options, chosen = {}, {}, {}
    for layer, row in content["layers"].items():
        shapes[layer] = tuple(map(int, row["shape"]))
        options[layer] = {Choice.parse(name): Option(int(x[0]), tuple(map(float, x[1:])))
                          for name, x in row["options"].items()}  # fmt: skip
        chosen[layer] = Choice.parse(row["choice"])
        if len(shapes[layer]) != 2 or chosen[layer] not in options[layer]:
            raise ValueError(f"layer {layer} has the choice {chosen[layer]}, which is none of its options")
        if any(len(x.errors) != len(METRICS) or not all(map(math.isfinite, x.errors)) for x in options[layer].values()):
            raise ValueError(f"the errors of layer {layer} are no {len(METRICS)} finite numbers")
    if not shapes or len(content["seen"]) != len(METRICS):
        raise ValueError("it is of no layer")
    measured = Measured(shapes, options, tuple(map(bool, content["seen"])), dict(content["measured"]))
    return Plan(measured, chosen, dict(content["about"]))


def _size(shape: Shape, choice: Choice, stats: LayerStats | None) -> int:
    form = FORMATS[choice.format]
    return form.size(shape, choice.bits, stats if form.needs else None)


def _summed(options: Iterable[Option]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*(option.errors for option in options), strict=True)))
