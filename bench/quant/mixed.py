"""Mixed precision by measured sensitivity against one width for all, on the tiny text-to-video model.

    python -m bench.quant.mixed [--prompts 6] [--judge 60] [--only "equal to lrq 4" ...]
    python -m bench.quant.mixed --table

Sensitivity: 2 training prompts, 12 steps of euler at cfg 4, layers tried in 2 of them, by layer, by module and by role.
Candidates: ViDiT-Q 8, 6 and 4, LRQ-DiT 4 and 3, which layers are tried with; in rows "to 2 bits" LRQ-DiT 2 also, and
layers are tried with that. Everything else is on held-out prompts, one seed each, 12 steps of euler at cfg 4, and
activations as they are. Columns: bits per weight with scales and tables; errors of content, motion and text in 3 steps
of 4 runs of the full model (squared, share of the model's own); PSNR of the clips to those of the full model, dB; with
--judge the percent of clips whose shirt, direction and number of puppets are as the prompt says, and with all three.

For each budget: the best single choice that fits; the plan; two random plans and the plan turned over, with the very
choices of the plan dealt anew among layers of the same shape, so that the bytes are equal to the byte.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from interspatial.models import host
from interspatial.models.families import bare
from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
from interspatial.models.puppet import judge, scene
from interspatial.models.quant.format import FORMATS
from interspatial.models.quant.plan import Measured, Plan, load_plan, make_plan, measured_of
from interspatial.models.quant.recipe import Choice
from interspatial.models.quant.sensitivity import METRICS, Findings, Sensitivity, Trial, predicted, probe_of, trials_of
from interspatial.models.report import Card
from torch import Tensor

from ..inprocess import CFG, Settings, conditioning, decode, empty_latent, psnr, sample, video_model
from ..prompt_following import right, wanted
from ..results_file import Results

STEPS = 12
EVEN = (1.0, 1.0, 1.0)
CHOICES = tuple(map(Choice.parse, ("vidit_q 8", "vidit_q 6", "vidit_q 4", "lrq 4", "lrq 3", "lrq 2")))
TRAINING, HELD_OUT = scene.split_prompts()
OUT, RESULTS = Path(__file__).parent.parent / "out", Path(__file__).parent.parent / "results" / "quant_mixed.json"
Chosen = Mapping[str, Choice]


def network():
    return bare(video_model("t2v").get_model_object("diffusion_model"))


def run(prompt: scene.Prompt, seed: int, model=None) -> Tensor:
    """The latent of one clip."""
    settings = Settings(steps=STEPS, cfg=CFG, seed=seed)
    model = video_model("t2v") if model is None else model
    return sample(model, conditioning(prompt.caption()), conditioning(""), empty_latent(), settings)


def observed(trials: tuple[Trial, ...], choices: Mapping, prompts: list, steps: int) -> Findings:
    """What runs of the full model show of these trials."""
    found = Findings()
    method = Sensitivity(trials, found, choices, steps=steps)
    model = host.attach_step(video_model("t2v"), Card("precision", "measure"), method)
    for seed, prompt in enumerate(prompts):
        run(prompt, seed, model)
    return found


@lru_cache
def measured(detail: str, least: int = 3, prompts: int = 2, first: int = 0) -> Measured:
    """The measurement, kept in a file beside others that this bench makes. least: bits of the candidates"""
    path = OUT / f"mixed_{detail}_{least}_{prompts}_{first}.json"
    if not path.exists():
        choices = dict.fromkeys(linear_layers(network()), tuple(choice for choice in CHOICES if choice.bits >= least))
        trials = trials_of(choices, detail, {layer: probe_of(some) for layer, some in choices.items()})
        found = observed(trials, choices, TRAINING[first : first + prompts], 2)
        table = measured_of(found, trials, choices, {}, detail=detail, prompts=prompts)
        make_plan(table, 10**12, EVEN).save(path)
    return load_plan(path).measured


def bytes_of(table: Measured, chosen: Chosen) -> int:
    return sum(table.options[layer][choice].nbytes for layer, choice in chosen.items())


def same(name: str) -> Chosen:
    """One choice for all layers."""
    return dict.fromkeys(measured("layer").shapes, Choice.parse(name))


def dealt(plan: Plan, how: str) -> Chosen:
    """The choices of a plan dealt anew among layers of one shape.

    how: "turned over", the layer that hurts most gets the fewest bits; else a seed of a random order
    """
    table, chosen = plan.measured, {}
    for shape in set(table.shapes.values()):
        layers = [layer for layer in table.shapes if table.shapes[layer] == shape]
        choices = sorted((plan.chosen[layer] for layer in layers), key=lambda choice: (choice.bits, choice))
        if how == "turned over":
            layers.sort(key=lambda layer: -harm(table, layer))
        else:
            random.Random(how).shuffle(layers)
        chosen.update(zip(layers, choices, strict=True))
    return chosen


def harm(table: Measured, layer: str) -> float:
    """Errors of a layer at the probe, each metric as a share of all layers'."""
    probe = probe_of(table.choices)
    totals = [sum(options[probe].errors[m] for options in table.options.values()) for m in range(len(METRICS))]
    return sum(error / total for error, total in zip(table.options[layer][probe].errors, totals, strict=True))


def candidates() -> dict[str, Chosen]:
    """Every row by its name."""
    table = measured("layer")
    rows = {f"all {name}": same(name) for name in ("lrq 3", "lrq 4", "vidit_q 4", "vidit_q 6", "vidit_q 8")}
    budgets = {"3.5 bits": 3.5 * table.weights / 8, "4.5 bits": 4.5 * table.weights / 8}
    budgets |= {f"equal to {name}": bytes_of(table, same(name)) for name in ("vidit_q 4", "vidit_q 6")}
    for name, budget in budgets.items():
        plan = make_plan(table, int(budget), EVEN)
        rows[f"plan, {name}"] = plan.chosen
        if "equal" not in name:
            rows |= {f"{how}, {name}": dealt(plan, how) for how in ("random 1", "random 2", "turned over")}
    budgets["equal to lrq 3"] = bytes_of(table, same("lrq 3"))
    for name in ("equal to lrq 3", "3.5 bits", "4.5 bits"):
        rows[f"plan to 2 bits, {name}"] = make_plan(measured("layer", 2), int(budgets[name]), EVEN).chosen
    for detail in ("module", "role"):
        rows[f"plan by {detail}, 4.5 bits"] = make_plan(measured(detail), int(budgets["4.5 bits"]), EVEN).chosen
    return rows


@contextmanager
def quantised(chosen: Chosen) -> Iterator[None]:
    """Within, the model computes with these weights."""
    layers = linear_layers(network())
    weights = {layer: FORMATS[choice.format].encode(float_weight(layers[layer], torch.device("cpu")), choice.bits)
               for layer, choice in chosen.items()}  # fmt: skip
    with coded_layers(network(), weights, 16):
        yield


@lru_cache
def full(seed: int) -> Tensor:
    """The clip of the full model."""
    return decode(run(HELD_OUT[seed], seed))


def held_out_errors(rows: dict[str, Chosen]) -> dict[str, dict]:
    """Errors of whole plans by METRICS."""
    trials = tuple(Trial(name, chosen) for name, chosen in rows.items())
    found = observed(trials, {}, HELD_OUT[:4], 3)
    return {name: dict(zip(METRICS, found.relative(name).tolist(), strict=True)) for name in rows}


def accuracy(count: int) -> dict:
    """Percent of the clips of the model as it is now."""
    scores = torch.stack([right(judge.judge(decode(run(prompt, i))), wanted(prompt))
                          for i, prompt in enumerate(HELD_OUT[:count])])  # fmt: skip
    shirt, direction, number = (100 * scores.mean(0)).tolist()
    return {"shirt": shirt, "direction": direction, "count": number, "all": 100 * float(scores.amin(1).mean())}


def steadiness(results: Results) -> None:
    """How far other prompts, details and widths agree with the measurement; in logarithms, by metric."""
    table, layers = measured("layer", 2), list(measured("layer").shapes)

    def logs(errors) -> Tensor:
        return torch.tensor([errors[layer] for layer in layers], dtype=torch.float64).clamp_min(1e-15).log()

    at = Choice("lrq", 3)
    base = logs({layer: measured("layer").options[layer][at].errors for layer in layers})
    others = {f"by {detail}": measured(detail) for detail in ("module", "role")}
    others |= {"another prompt": measured("layer", 3, 1, 2), "3 bits, tried with 2": table}
    for name, other in others.items():
        results.put(f"correlation, {name}", agreement(base, logs({x: other.options[x][at].errors for x in layers})))
    for choice in (Choice("lrq", 4), Choice("vidit_q", 8)):
        trials = trials_of(layers, "layer", dict.fromkeys(layers, choice))
        weights = {(layer, choice): 1.0 for layer in layers}
        found = observed((*trials, Trial("whole", dict.fromkeys(layers, choice))), {}, TRAINING[:1], 2)
        found.weights = weights
        direct = {layer: x[choice] for layer, x in
                  predicted(found, trials, dict.fromkeys(layers, (choice,))).items()}  # fmt: skip
        guess = {layer: table.options[layer][choice].errors for layer in layers}
        total = [sum(errors[m] for errors in direct.values()) for m in range(len(METRICS))]
        added = [value / float(x) for value, x in zip(total, found.relative("whole"), strict=True)]
        results.put(f"correlation, {choice}, tried with 2 bits", agreement(logs(guess), logs(direct)) | {
            "sum of layers over whole": dict(zip(METRICS, added, strict=True))})  # fmt: skip


def agreement(a: Tensor, b: Tensor) -> dict:
    """Correlation by metric. [L, M] each"""
    return {name: float(torch.corrcoef(torch.stack((a[:, m], b[:, m])))[0, 1]) for m, name in enumerate(METRICS)}


def fill(args: argparse.Namespace) -> None:
    """Each row as it is finished."""
    results = Results(RESULTS, __doc__, cfg=CFG, steps=STEPS, prompts=args.prompts)
    table, rows = measured("layer", 2), candidates()
    rows = {name: chosen for name, chosen in rows.items() if not args.only or any(x in name for x in args.only)}
    if missing := {name: chosen for name, chosen in rows.items() if "content" not in results.rows.get(name, {})}:
        for name, errors in held_out_errors(missing).items():
            parts = [table.options[layer][choice].errors for layer, choice in missing[name].items()]
            guess = {f"predicted {metric}": sum(x[m] for x in parts) for m, metric in enumerate(METRICS)}
            nbytes = bytes_of(table, missing[name])
            results.put(name, {"bytes": nbytes, "bits": 8 * nbytes / table.weights, **errors, **guess})
    for name, chosen in rows.items():
        if len(results.rows[name].get("each", ())) < args.prompts:
            with quantised(chosen):
                clips = [decode(run(HELD_OUT[seed], seed)) for seed in range(args.prompts)]
            each = [psnr(clip, full(seed)) for seed, clip in enumerate(clips)]
            results.put(name, {"psnr": statistics.mean(each), "clips": len(each), "each": each})
    for name, chosen in rows.items() if args.judge else ():
        if "all" not in results.rows[name]:
            with quantised(chosen):
                results.put(name, accuracy(args.judge))
    if args.steadiness:
        steadiness(results)


def show(path: Path) -> None:
    """The rows as markdown."""
    rows = Results(path, __doc__).rows
    columns = ("bits", *METRICS, "psnr", "clips", "shirt", "direction", "count", "all")
    print(f"| plan | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        if "bits" in row:
            print(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in columns) + " |")
    print(f"\n| agreement | {' | '.join(METRICS)} |\n|{' --- |' * 4}")
    for name, row in rows.items():
        if name.startswith("correlation"):
            print(f"| {name} | " + " | ".join(f"{row[m]:.3f}" for m in METRICS) + " |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--judge", type=int, default=0, help="prompts whose clips are judged, 0: none")
    parser.add_argument("--only", nargs="+", help="rows with one of these in their names")
    parser.add_argument("--steadiness", action="store_true", help="how far prompts, details and widths agree")
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    args = parser.parse_args()
    show(RESULTS) if args.table else fill(args)


if __name__ == "__main__":
    main()
