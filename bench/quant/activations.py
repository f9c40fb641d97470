"""What activation statistics are worth on the tiny model: how steady they are, and what the channel mask gives.

    python -m bench.quant.activations [--only planted steady errors outputs clips] [--json FILE]

Statistics come from training prompts, 12 steps of Euler at cfg 4; whatever is judged comes from held-out prompts.
    steady     statistics of 1, 2, 4 and 8 prompts against those of 8 others
    errors     of every layer's output, || q(X B) (W B^-1)^T - X W^T || / || X W^T ||, with int8 activations
    outputs    of the model's output at 3 of 12 steps, || y' - y || / || y ||
    clips      PSNR of 4 clips to those of the model as it is
    planted    random layers with a few large channels, weights and activations of 4 bits, for the order of the methods
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from interspatial.kernels.block_hadamard import block_of
from interspatial.models import host
from interspatial.models.block_visits import covered
from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
from interspatial.models.puppet import scene
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.calibration import Calibration, packed_gram, unpacked_gram
from interspatial.models.quant.feedback import carry_in
from interspatial.models.quant.format import FORMATS, Coded, Format, dense
from interspatial.models.quant.linear import linear
from interspatial.models.quant.stats import LayerStats
from interspatial.models.quant.uniform import encode_uniform
from interspatial.models.quant.watch import ActivationWatch, Findings
from interspatial.models.report import Card
from torch import Tensor

from ..inprocess import Settings, conditioning, decode, empty_latent, psnr, sample, video_model
from ..results_file import Results

STEPS, JUDGED, ROWS = 12, 4, 16  # steps of a run, held-out prompts, tokens of each call whose outputs are judged
JUDGED_STEPS = (1, 5, 9)
ALPHAS = (0.3, 0.5, 0.5665, 0.7)
Encode = Callable[[Tensor, LayerStats], Coded]


def run(model, caption: str, seed: int) -> Tensor:
    """The latent of one clip."""
    settings = Settings(steps=STEPS, seed=seed)
    return sample(model, conditioning(caption), conditioning(""), empty_latent(), settings)


def calibrated(prompts: list[str], seed: int) -> list[Calibration]:
    """Statistics after each of the prompts."""
    findings = Findings(4, 2**31)
    model = host.attach_step(video_model("t2v"), Card("activations", "measure"), ActivationWatch(findings))
    found = []
    for i, caption in enumerate(prompts):
        run(model, caption, seed + i)
        found.append(findings.calibration(prompts=i + 1))
    return found


def diffusion_model():
    return video_model("t2v").get_model_object("diffusion_model")


def weights() -> dict[str, Tensor]:
    return {name: float_weight(layer, torch.device("cpu")) for name, layer in linear_layers(diffusion_model()).items()}


def inputs(prompts: list[str]) -> dict[str, Tensor]:
    """Rows that enter each layer in runs of held-out prompts, [M, K]."""
    rows: dict[str, list[Tensor]] = {}

    def keeping(name: str) -> Callable:
        def cover(forward):
            def covering(x: Tensor) -> Tensor:
                flat = x.reshape(-1, x.shape[-1])
                rows.setdefault(name, []).append(flat[:: max(1, len(flat) // ROWS)].float().clone())
                return forward(x)

            return covering

        return cover

    with covered((layer, keeping(name)) for name, layer in linear_layers(diffusion_model()).items()):
        for i, caption in enumerate(prompts):
            run(video_model("t2v"), caption, 500 + i)
    return {name: torch.cat(found) for name, found in rows.items()}


def variants(bits: int) -> Iterator[tuple[str, Encode]]:
    """Ways to encode a layer, by name. `form` masks by peaks; only those with feedback see the products of channels."""
    form: Format = FORMATS["vidit_q"]
    yield f"rtn {bits}", lambda weight, stats: FORMATS["rtn"].encode(weight, bits)
    yield f"vidit_q {bits}, no mask", lambda weight, stats: form.encode(weight, bits)
    for alpha in ALPHAS:
        yield f"vidit_q {bits}, peaks, alpha {alpha}", _masked(replace(form, alpha=alpha), bits, "peaks")
    yield f"vidit_q {bits}, mean of peaks over bins", _masked(form, bits, "mean")
    for alpha in ALPHAS:
        yield f"vidit_q {bits}, rms, alpha {alpha}", _masked(replace(form, alpha=alpha), bits, "rms")
    if bits < 8:
        yield f"vidit_q {bits}, no mask, feedback", partial(_fed_back, bits)
        yield f"vidit_q {bits}, peaks, feedback", _masked(form, bits, "peaks", feedback=True)
        yield f"vidit_q {bits}, rms, feedback", _masked(form, bits, "rms", feedback=True)


def _masked(form: Format, bits: int, by: str, feedback: bool = False) -> Encode:
    sizes = {"peaks": lambda stats: stats.peak, "mean": lambda stats: stats.peak.mean(0, keepdim=True),
             "rms": lambda stats: stats.power.mean(0, keepdim=True).sqrt()}[by]  # fmt: skip
    return lambda weight, stats: form.encode(
        weight, bits, LayerStats(sizes(stats), stats.power, stats.gram if feedback else None)
    )


def _fed_back(bits: int, weight: Tensor, stats: LayerStats) -> Coded:
    basis = Basis(block_of(weight.shape[1]))
    return encode_uniform("vidit_q", weight, bits, basis, True, carry_in(basis, stats, weight.device))


def steady(results: Results) -> None:
    """How far statistics of few prompts are from those of 8 others, over all layers."""
    captions = [prompt.caption() for prompt in scene.split_prompts()[0]]
    goal = calibrated(captions[100:108], 900)[-1]
    for i, found in enumerate(calibrated(captions[:8], 100)):
        if i + 1 in (1, 2, 4, 8):
            results.put(f"steady, {i + 1} prompts", compared(found, goal))
    kappa = {layer: stats.salience for layer, stats in goal.layers.items()}
    moves = [float((stats.peak.amax(0) / stats.peak.amin(0)).median()) for stats in goal.layers.values()]
    results.put("salience", {"median": median(kappa.values()), "most": max(kappa.values()),
                             "most in": max(kappa, key=kappa.__getitem__),
                             "peak of a channel, largest part over least, median": median(moves)})  # fmt: skip
    halves = [relative(unpacked_gram(*packed_gram(stats.gram)), stats.gram) for stats in goal.layers.values()]
    results.put("products in the file", {"relative error of correlations in float16, most": max(halves)})


def compared(found: Calibration, goal: Calibration) -> dict:
    """Medians over layers of mean distances between channels, in powers of two."""
    away: dict[str, list[float]] = {"peak": [], "rms": [], "mask": [], "products": []}
    for layer, stats in found.layers.items():
        other = goal.layers[layer]
        apart = (stats.peaks / other.peaks).log2()
        away["peak"].append(float(apart.abs().mean()))
        away["mask"].append(float((apart - apart.mean()).abs().mean()) * (1 - FORMATS["vidit_q"].alpha))
        away["rms"].append(float((stats.power.mean(0) / other.power.mean(0)).log2().abs().mean()) / 2)
        away["products"].append(relative(stats.gram, other.gram))
    return {name: median(values) for name, values in away.items()}


def relative(a: Tensor, b: Tensor) -> float:
    """|| a - b || / || b ||"""
    return float((a - b).norm() / b.norm())


def errors(results: Results, found: Calibration) -> None:
    """Output errors of all layers."""
    held = [prompt.caption() for prompt in scene.split_prompts()[1][:2]]
    given, here = weights(), inputs(held)
    for bits in (4, 8):
        for name, encode in variants(bits):
            out, own = [], []
            for layer, weight in given.items():
                coded, x = encode(weight, found.layers[layer]), here[layer]
                out.append(relative(linear(x, coded, None, 8), x @ weight.t()))
                own.append(relative(dense(coded), weight))
            results.put(name, {"output error, mean": mean(out), "output error, worst": max(out),
                               "weight error, mean": mean(own)})  # fmt: skip


@dataclass
class Trials:
    """A step method that evaluates the model again with each of several sets of weights, and goes on without them."""

    trials: dict[str, dict[str, Coded]]
    found: dict[str, list[float]] = field(default_factory=dict)

    def why_not(self, step) -> str | None:
        return None if step.run.step in JUDGED_STEPS else "not one of the steps that are judged"

    def evaluate(self, step) -> Tensor:
        base = step.proceed()
        for name, weights in self.trials.items():
            with coded_layers(step.model, weights, 8):
                self.found.setdefault(name, []).append(relative(step.proceed(), base))
        return base


def outputs(results: Results, found: Calibration) -> None:
    """Errors of the model's whole output, without what sampling makes of them."""
    given = weights()
    for bits in (4, 8):
        trials = Trials({name: {layer: encode(weight, found.layers[layer]) for layer, weight in given.items()}
                         for name, encode in variants(bits)})  # fmt: skip
        model = host.attach_step(video_model("t2v"), Card("trials", "measure"), trials)
        for i, prompt in enumerate(scene.split_prompts()[1][:JUDGED]):
            run(model, prompt.caption(), i)
        for name, errors in trials.found.items():
            results.put(name, {"model output error": mean(errors)})


def clips(results: Results, found: Calibration) -> None:
    """PSNR of clips."""
    held = [prompt.caption() for prompt in scene.split_prompts()[1][:JUDGED]]
    goals = [decode(run(video_model("t2v"), caption, i)) for i, caption in enumerate(held)]
    given = weights()
    for name, encode in (pair for bits in (4, 8) for pair in variants(bits)):
        if "PSNR, mean" in results.rows.get(name, {}):
            continue
        coded = {layer: encode(weight, found.layers[layer]) for layer, weight in given.items()}
        with coded_layers(diffusion_model(), coded, 8):
            clips = [decode(run(video_model("t2v"), caption, i)) for i, caption in enumerate(held)]
        apart = [psnr(clip, goal) for clip, goal in zip(clips, goals, strict=True)]
        results.put(name, {"PSNR, mean": mean(apart), "PSNR, worst": min(apart)})


def planted(results: Results) -> None:
    """Relative squared error of outputs of random layers, 1024 inputs, 4 bits for weights and activations."""
    for factor, count in ((1, 0), (10, 8), (200, 2)):
        draw = torch.Generator().manual_seed(factor)
        x, weight = (torch.randn(rows, 1024, generator=draw) for rows in (512, 512))
        x[:, :count] *= factor
        stats = LayerStats(x.abs().amax(0)[None], x.square().mean(0)[None])
        form = replace(FORMATS["vidit_q"], alpha=0.5)
        ways = {"none": FORMATS["rtn"].encode(weight, 4), "rotation": form.encode(weight, 4),
                "mask and rotation": form.encode(weight, 4, stats)}  # fmt: skip
        found = {name: relative(four_bits(coded.basis.activation(x)) @ coded.basis.weight(dense(coded)).t(),
                                x @ weight.t()) ** 2 for name, coded in ways.items()}  # fmt: skip
        results.put(f"planted, {count} channels x {factor}", found)


def four_bits(x: Tensor) -> Tensor:
    """Each token in 15 even steps around 0."""
    step = x.abs().amax(1, keepdim=True) / 7
    return (x / step).round() * step


@torch.inference_mode()
def main() -> None:
    parts = {"errors": errors, "outputs": outputs, "clips": clips}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=("planted", "steady", *parts))
    parser.add_argument("--json", type=Path, default=Path(__file__).parents[1] / "out" / "quant_activations.json")
    args = parser.parse_args()
    args.json.parent.mkdir(exist_ok=True)
    results = Results(args.json, __doc__, steps=STEPS, model="tiny_puppet_t2v")
    if "planted" in args.only:
        planted(results)
    if "steady" in args.only:
        steady(results)
    if set(parts) & set(args.only):
        found = calibrated([prompt.caption() for prompt in scene.split_prompts()[0][:8]], 100)[-1]
        for name, part in parts.items():
            if name in args.only:
                part(results, found)


if __name__ == "__main__":
    main()
