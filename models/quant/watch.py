"""Watching what enters the linear layers of a model while it samples: statistics for quantised weights.

Source: the calibrations of ViDiT-Q (arXiv 2406.02540, largest values of each channel by time step) and of GPTQ (arXiv
2210.17323, products of channels). Nothing is kept of an activation but sums and largest values, on its own device.
"""
# M tokens   K inputs   S bins of the noise range

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention.pattern_table import bin_of
from ..block_visits import covered
from ..host import StepCall
from ..host.quant_trial import linear_layers
from .calibration import Calibration
from .stats import LayerStats

PART = 2**24  # numbers of an activation that are looked at together: 64 MB, and twice that for what is made of them
GRAM_ROWS = 4096  # tokens of one call whose products are summed; the next call takes others
GRAM_MOST = 4096  # inputs of a layer above which products are not kept: 64 MB each
GRAM_BYTES = 2**31  # of all of them together


@dataclass
class LayerSums:
    """peak: [S, K] float32, largest absolute value; square: [S, K] float32, sum; gram: [K, K] float32, sum, or None

    wrong: float32, the first evaluation with something that is not finite, infinite without one
    tokens: summed over, by bin
    rows: summed over in `gram`
    """

    peak: Tensor
    square: Tensor
    gram: Tensor | None
    wrong: Tensor
    tokens: list[int]
    rows: int = 0
    calls: int = 0

    @classmethod
    def empty(cls, bins: int, inputs: int, gram: bool, device: torch.device) -> LayerSums:
        peak, square = torch.zeros(2, bins, inputs, device=device)
        products = torch.zeros(inputs, inputs, device=device) if gram else None
        return cls(peak, square, products, torch.full((), torch.inf, device=device), [0] * bins)

    def add(self, x: Tensor, number: int, at: int) -> None:
        """x: [..., K], which came in bin `number` of evaluation `at`. Nothing waits for the device."""
        rows = x.reshape(-1, x.shape[-1])
        for part in rows.split(max(1, PART // rows.shape[1])):
            part = part.float()
            self.peak[number] = torch.maximum(self.peak[number], torch.linalg.vector_norm(part, torch.inf, dim=0))
            self.square[number] += part.square().sum(0)
        fine = self.square[number].isfinite().all()
        self.wrong = torch.minimum(self.wrong, torch.where(fine, torch.inf, float(at)))
        self.tokens[number] += len(rows)
        if self.gram is not None:
            every = max(1, -(-len(rows) // GRAM_ROWS))
            part = rows[self.calls % every :: every].float()
            self.gram.addmm_(part.t(), part)
            self.rows += len(part)
        self.calls += 1

    def merged(self, other: LayerSums) -> LayerSums:
        """Sums of both, on the CPU: parts of one layer may have run on several devices."""
        return LayerSums(
            torch.maximum(self.peak.cpu(), other.peak.cpu()), self.square.cpu() + other.square.cpu(),
            None if self.gram is None else self.gram.cpu() + other.gram.cpu(),
            torch.minimum(self.wrong.cpu(), other.wrong.cpu()),
            [a + b for a, b in zip(self.tokens, other.tokens, strict=True)],
            self.rows + other.rows, self.calls + other.calls,
        )  # fmt: skip

    def stats(self) -> LayerStats:
        """What was gathered, on the CPU. Bins that nothing came in get the values of the nearest that something did."""
        tokens = torch.tensor(self.tokens, dtype=torch.float32)
        peak, power = self.peak.cpu(), self.square.cpu() / tokens.clamp_min(1)[:, None]
        seen, number = (tokens > 0).nonzero().flatten(), torch.arange(len(tokens))
        nearest = seen[(number[:, None] - seen).abs().argmin(1)]
        gram = None if self.gram is None else self.gram.cpu() / self.rows
        return LayerStats(peak[nearest], power[nearest], gram)


@dataclass
class Findings:
    """Made by who calibrates, because it outlives the runs; one serves several runs, whose statistics are joined.

    bins: even parts of the model's noise range
    gram_bytes: for products of channels, 0: none are kept. Layers take from it in the order of blocks
    layers: inputs of each layer of the model
    sigmas: of each run
    evaluations: run and step of each evaluation of the model, counted from 1
    """

    bins: int = 4
    gram_bytes: int = 0
    layers: dict[str, int] = field(default_factory=dict)
    sums: dict[tuple[str, torch.device], LayerSums] = field(default_factory=dict)
    sigmas: list[tuple[float, ...]] = field(default_factory=list)
    evaluations: list[tuple[int, int]] = field(default_factory=list)
    _grams: frozenset[str] = frozenset()

    def begin(self, layers: dict[str, int], sigmas: tuple[float, ...]) -> None:
        """A run begins. raises: ValueError when it is of another model than the runs before"""
        if self.layers and self.layers != layers:
            raise ValueError("The runs of one calibration are of models with different layers; use one model for all.")
        self.layers, left, grams = layers, self.gram_bytes, set()
        for layer, inputs in layers.items():
            if inputs <= GRAM_MOST and 4 * inputs**2 <= left:
                grams.add(layer)
                left -= 4 * inputs**2
        self._grams = frozenset(grams)
        self.sigmas.append(sigmas)

    def add(self, layer: str, x: Tensor, number: int) -> None:
        """x: [..., K], what enters a layer in the last of `evaluations`"""
        key = (layer, x.device)
        if key not in self.sums:
            self.sums[key] = LayerSums.empty(self.bins, x.shape[-1], layer in self._grams, x.device)
        self.sums[key].add(x, number, len(self.evaluations) - 1)

    def calibration(self, **about) -> Calibration:
        """The statistics, on the CPU. about: what else to say of the runs

        raises: ValueError when nothing was gathered, or a layer's activations are not finite
        """
        self._check()
        whole: dict[str, LayerSums] = {}
        for (layer, _), sums in self.sums.items():
            if sums.calls:
                whole[layer] = sums.merged(whole[layer]) if layer in whole else sums
        found = {layer: whole[layer].stats() for layer in self.layers if layer in whole}
        if not found:
            raise ValueError("no linear layer in a block of the model was seen at work")
        tokens = [max(sums.tokens[i] for sums in whole.values()) for i in range(self.bins)]
        about |= {"runs": len(self.sigmas), "sigmas": [list(sigmas) for sigmas in self.sigmas], "tokens": tokens,
                  "unseen": [layer for layer in self.layers if layer not in found]}  # fmt: skip
        return Calibration(found, about)

    def _check(self) -> None:
        """raises: ValueError that names the layer where values that are not finite came in first"""
        if not self.sums:
            return
        (layer, _), sums = min(self.sums.items(), key=lambda item: float(item[1].wrong))  # of equals the first to run
        if sums.wrong.isfinite():
            run, step = self.evaluations[int(sums.wrong)]
            raise ValueError(
                f"what enters layer {layer} is not finite, or its square is not, in step {step} of run {run}. The "
                "model overflows by itself, so no statistics can be had of it: load it with another weight dtype, and "
                "look whether its clips are whole"
            )


@dataclass(frozen=True, eq=False)
class ActivationWatch:
    """What `host.attach_step` takes. The run is bit-equal to one without it.

    findings: where it goes
    tick: called before each evaluation; may raise the user's interrupt
    """

    findings: Findings
    tick: Callable[[], None] = lambda: None

    def why_not(self, step: StepCall) -> str | None:
        if step.compiled:
            return "torch.compile is at work, and its layers cannot be looked into"
        if step.forward.position is None:
            return "the sampler does not tell the step"
        if step.role is not None:
            return "an evaluation beside the run's own"
        return None

    def evaluate(self, step: StepCall) -> Tensor:
        self.tick()
        modules = step.state(None, lambda: linear_layers(step.model))
        begun = step.run.state(step.owner, None, -1, "begun", None, list)
        if not begun:
            begun.append(True)
            self.findings.begin({name: layer.in_features for name, layer in modules.items()}, step.run.schedule.sigmas)
        self.findings.evaluations.append((len(self.findings.sigmas), step.forward.position.step + 1))
        number = bin_of(step.forward.position.percent, self.findings.bins)
        with covered((layer, self._cover(name, number)) for name, layer in modules.items()):
            return step.proceed()

    def _cover(self, name: str, number: int) -> Callable[[Callable], Callable]:
        def cover(forward: Callable) -> Callable:
            def covering(x: Tensor, *args, **kwargs) -> Tensor:
                self.findings.add(name, x, number)
                return forward(x, *args, **kwargs)

            return covering

        return cover
