"""What the quantisation of each layer does to the output of the whole model: to its content, its motion, its text.

In a few steps of an ordinary run the model is evaluated again with some layers quantised and all else as it is, on the
same input. The run itself is not changed. The difference of the outputs falls into three parts, which are orthogonal:
no part of an error counts twice, and a layer may be bad at one of them alone.

    content   mean over prompts and over time: what is there
    motion    mean over prompts, from frame to frame: what moves; a constant offset is not in it
    text      positive less negative: what the prompt adds, which guidance multiplies

Source: metric-decoupled sensitivity of ViDiT-Q (arXiv 2406.02540), which sorts layers by their kind and judges them
with models for video quality, text and flow. Here every layer gets all three, from the model's own output alone.
"""
# B batch   C channels   T H W: latent frames, rows, columns   N outputs   K inputs

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from ..host import StepCall
from ..host.quant_trial import coded_layers, float_weight, linear_layers
from .format import FORMATS, Coded, dense
from .layers import block_of_layer, role_of_layer
from .recipe import Choice
from .stats import LayerStats

METRICS = ("content", "motion", "text")
DETAILS = ("layer", "module", "role")
SAMPLE = 2**20   # weights whose rounding is looked at for each choice: whole rows, evenly taken


@dataclass(frozen=True)
class Trial:
    """Layers that are quantised together, in an evaluation of their own."""

    name: str
    layers: Mapping[str, Choice]


def trials_of(layers: Iterable[str], detail: str, probe: Mapping[str, Choice]) -> tuple[Trial, ...]:
    """What to try.

    detail: "layer", each alone; "module", those of one attention or MLP in one block; "role", those of one kind in all
        blocks
    probe: the choice that each layer is tried with
    """
    groups: dict[Hashable, list[str]] = {}
    for layer in layers:
        role = role_of_layer(layer)
        stack, module = block_of_layer(layer), role.rpartition(".")[0] or role
        key = {"layer": layer, "module": (stack, module), "role": (stack and stack[0], role)}[detail]
        groups.setdefault(key, []).append(layer)
    return tuple(Trial(names[0], {name: probe[name] for name in names}) for names in groups.values())


def usable(shapes: Mapping[str, tuple[int, int]], choices: Iterable[Choice]) -> dict[str, tuple[Choice, ...]]:
    """Which of the choices each layer can take; layers that can take none are absent."""
    choices = tuple(choices)
    found = {layer: tuple(choice for choice in choices if FORMATS[choice.format].why_not(shape, choice.bits) is None)
             for layer, shape in shapes.items()}  # fmt: skip
    return {layer: some for layer, some in found.items() if some}


def probe_of(choices: Iterable[Choice]) -> Choice:
    """The choice that a layer is tried with; the others follow from it by their weight errors.

    The one with the fewest bits: small errors follow from large ones better than the reverse (tiny model: tried at 4
    bits, single layers come out up to four times too good at 2 bits, where a softmax no longer answers in proportion),
    and a large error stands clear of the rounding of the model itself.
    """
    return min(choices, key=lambda choice: (choice.bits, choice.format))


@dataclass
class Findings:
    """Sums over steps and runs; outlives them and holds no tensor of the model's device.

    Each step counts the same, by its own energy: of the sums that were tried, this one tells the error of the finished
    clip best (tiny model, ten roles at 2 bits, text: log ratio to the clip's error has a deviation of 0.21, with sums
    of squares over sums of energies 0.32).

    energy: [3] float64, of the model's own output, by METRICS
    errors: [3] float64 of each trial, shares of the energy of their step
    weights: squared relative error of a weight, by layer and choice
    shapes: of the layers' weights
    calls: outputs that were compared
    """

    energy: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    errors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[tuple[str, Choice], float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    calls: int = 0

    @property
    def seen(self) -> tuple[bool, ...]:
        """Which of METRICS the runs have shown: no text without a negative prompt, no motion in one frame."""
        return tuple(bool(value > 0) for value in self.energy)

    def relative(self, trial: str) -> Tensor:
        """[3], errors as shares of the energy of the model's own output, mean over steps; 0 for what was not seen."""
        return self.errors[trial] / max(1, self.calls)


@dataclass(frozen=True)
class Sensitivity:
    """What `host.attach_step` takes, of kind "measure".

    trials: what is tried
    choices: of each layer, whose weight errors are noted
    guided: a negative prompt is evaluated too; the two may come in one call or in two
    steps: how many are measured, spread evenly
    stats: of activations, for `Format.encode` and to weigh the channels of weight errors
    tick: called before each evaluation and each layer that is encoded; raises to interrupt
    """

    trials: tuple[Trial, ...]
    found: Findings
    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    guided: bool = True
    steps: int = 4
    act_bits: int = 16
    stats: Mapping[str, LayerStats] = field(default_factory=dict)
    tick: Callable[[], None] = lambda: None

    def why_not(self, step: StepCall) -> str | None:
        position = step.forward.position
        if position is None:
            return "the sampler does not tell the step"
        if step.compiled:
            return "torch.compile is at work, and would compile the model anew for each layer that is tried"
        if step.role is not None or position.call or position.step not in measured_steps(self.steps, position.steps):
            return "not one of the measured steps"
        return None

    def evaluate(self, step: StepCall) -> Tensor:
        codes = step.run.state((step.owner, "codes"), None, -1, None, None, dict)
        if not codes:
            self._encode(step, codes)
        base = step.proceed()
        waiting = step.state(None, dict, "waiting")   # outputs whose other prompt has not been evaluated yet
        self._take(step, waiting, None, base)
        for trial in self.trials:
            self.tick()
            weights = {layer: moved(codes[layer, choice], base.device) for layer, choice in trial.layers.items()}
            with coded_layers(step.model, weights, self.act_bits):
                out = step.proceed()
            self._take(step, waiting, trial, out - base)
        return base

    def _encode(self, step: StepCall, codes: dict) -> None:
        """Codes for all trials, kept on the CPU, and the weight errors; one layer at a time is there in full."""
        tried: dict[str, set[Choice]] = {}
        for trial in self.trials:
            for layer, choice in trial.layers.items():
                tried.setdefault(layer, set()).add(choice)
        modules = linear_layers(step.model)
        for layer in dict.fromkeys((*tried, *self.choices)):
            self.tick()
            weight = float_weight(modules[layer], step.x.device)
            stats = stats_on(self.stats.get(layer), weight.device)
            rows = weight[:: max(1, weight.numel() // SAMPLE)]
            self.found.shapes[layer] = tuple(weight.shape)
            for choice in dict.fromkeys((*self.choices.get(layer, ()), *tried.get(layer, ()))):
                self.found.weights[layer, choice] = weight_error(rows, encoded(rows, choice, stats), stats)
                if choice in tried.get(layer, ()):
                    codes[layer, choice] = moved(encoded(weight, choice, stats), torch.device("cpu"))

    def _take(self, step: StepCall, waiting: dict, trial: Trial | None, out: Tensor) -> None:
        """Note the output of the model (trial: None) or the error of a trial, when all prompts of the step are there.

        Without a partner in the same call it waits on the CPU: trials times the size of a latent.
        """
        video = video_of(out, step.shapes)
        name, parts = trial and trial.name, {b.cond: video[b.rows].float() for b in step.forward.branches}
        at, kept = waiting.get(name, (None, {}))
        parts = (kept if at == step.run.calls else {}) | parts   # `calls` counts sampler calls, not prompts
        if 0 not in parts or (self.guided and 1 not in parts):
            waiting[name] = step.run.calls, {cond: part.cpu() for cond, part in parts.items()}
            return
        waiting.pop(name, None)
        parts = {cond: part.to(video.device) for cond, part in parts.items()}
        energies = decoupled(parts[0], parts[1] if self.guided else None).cpu().double()
        if trial is None:
            waiting["energy"] = energies   # all trials of this step become complete in this very call too
            self.found.energy += energies
            self.found.calls += 1
        else:
            shares = torch.where(waiting["energy"] > 0, energies / waiting["energy"].clamp_min(1e-300), 0.0)
            self.found.errors[name] = self.found.errors.get(name, 0) + shares


def measured_steps(count: int, total: int) -> tuple[int, ...]:
    """Steps in the middle of even parts of the run; all of a run that has fewer."""
    count = min(count, total)
    return tuple(int((i + 0.5) * total / count) for i in range(count))


def decoupled(positive: Tensor, negative: Tensor | None) -> Tensor:
    """[B, C, T, H, W] each -> [3] float32: squares of content, motion and text, summed.

    The mean over prompts does not change when their difference does, differences along T do not change with the mean
    over T, so each is blind to the other two. negative: None for a run without guidance, text is 0 then.
    """
    both = positive if negative is None else (positive + negative) / 2
    text = positive.new_zeros(()) if negative is None else positive - negative
    return torch.stack([part.square().sum() for part in (both.mean(2), both.diff(dim=2), text)])


def video_of(out: Tensor, shapes: tuple[tuple[int, ...], ...]) -> Tensor:
    """The video's part [B, C, T, H, W] of what the model gives; an image is a video of one frame."""
    if len(shapes) > 1:   # packed into one row with the sound
        out = out.flatten(1)[:, : prod(shapes[0][1:])].unflatten(1, shapes[0][1:])
    return out if out.ndim == 5 else out.unsqueeze(2)


def weight_error(weight: Tensor, coded: Coded, stats: LayerStats | None) -> float:
    """Squared error of a weight [N, K] over its own square; channels count by their mean square where it is known."""
    power = torch.ones_like(weight[0]) if stats is None else stats.power.mean(0)
    error = ((dense(coded) - weight).square() @ power).sum() / (weight.square() @ power).sum().clamp_min(1e-30)
    return float(error)


def encoded(weight: Tensor, choice: Choice, stats: LayerStats | None) -> Coded:
    """A weight [N, K] in a choice. stats: on the device of the weight"""
    form = FORMATS[choice.format]
    return form.encode(weight, choice.bits, stats if form.needs else None)


def moved(coded: Coded, device: torch.device) -> Coded:
    """The same weight on another device."""

    def to(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    basis = replace(coded.basis, mask=to(coded.basis.mask), turns=to(coded.basis.turns), order=to(coded.basis.order))
    return replace(coded, codes=to(coded.codes), scale=to(coded.scale), table=to(coded.table), basis=basis)


def stats_on(stats: LayerStats | None, device: torch.device) -> LayerStats | None:
    """The same statistics on another device."""
    if stats is None:
        return None
    gram = None if stats.gram is None else stats.gram.to(device)
    return replace(stats, peak=stats.peak.to(device), power=stats.power.to(device), gram=gram)


def predicted(found: Findings, trials: Iterable[Trial], choices: Mapping[str, tuple[Choice, ...]]
              ) -> dict[str, dict[Choice, tuple[float, ...]]]:  # fmt: skip
    """Errors of each layer with each of its choices, by METRICS: what was measured with the probe, times the ratio of
    the weight errors. Layers that were tried together share by their weight errors.

    raises: ValueError for outputs that are not finite
    """
    if not bool(found.energy.isfinite().all()):
        raise ValueError("the model's own output is not finite in the measured steps, so nothing can be told from it. "
                         "Look at a clip of it first: settings or files are wrong")  # fmt: skip
    table: dict[str, dict[Choice, tuple[float, ...]]] = {}
    for trial in trials:
        measured = found.relative(trial.name)
        if not bool(measured.isfinite().all()):
            raise ValueError(f"the model's output is not finite with {trial.name} in few bits. Take candidates with "
                             "more bits, or a model in another precision")  # fmt: skip
        whole = sum(found.weights[layer, choice] for layer, choice in trial.layers.items())
        for layer in trial.layers:
            table[layer] = {choice: tuple((measured * found.weights[layer, choice] / max(whole, 1e-30)).tolist())
                            for choice in choices[layer]}  # fmt: skip
    return table
