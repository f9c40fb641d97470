"""Trains a tiny LoRA for the text-to-video model: what guidance does, learned into the weights.

    python -m training.lora                # trains, resumes where it stopped, writes the LoRA and its card
    python -m training.lora --export       # writes what is there

The base follows a prompt only with guidance, two evaluations a step. The LoRA learns the guided velocity as one
conditional evaluation (Meng et al., 2023, "On distillation of guided diffusion models", first stage, with one fixed
guidance strength); with an empty prompt it learns to change nothing. The base itself is the teacher, so the clips only
say where on the noise levels to look. Keys are those that core's LoRA loader reads.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from interspatial.models import host  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from . import dit, text  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .log import Curve  # noqa: E402
from .state import save  # noqa: E402

NAME, FOLDER = "tiny_puppet_t2v_guided", RUNS / "lora"
RANK, RATE, GUIDANCE = 8, 2e-3, 4.0
ADAPTED = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
           "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip


class LowRank(nn.Module):
    """A frozen linear layer plus up @ down. Starts as the layer itself: up is zero."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(RANK, linear.in_features) * linear.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.down.T) @ self.up.T


def base() -> nn.Module:
    model = dit.build("t2v").requires_grad_(False)
    path = CHECKPOINTS / "diffusion_models" / "tiny_puppet_t2v.safetensors"
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model


def adapt(model: nn.Module) -> dict[str, LowRank]:
    """Put a `LowRank` around every layer of `ADAPTED`. returns: them, by the name of the layer"""
    adapters = {}
    for i, block in enumerate(model.blocks):
        for name in ADAPTED:
            path, leaf = name.rsplit(".", 1)
            parent = block.get_submodule(path)
            adapters[f"blocks.{i}.{name}"] = LowRank(getattr(parent, leaf))
            setattr(parent, leaf, adapters[f"blocks.{i}.{name}"])
    return adapters


def contexts(captions: list[str]) -> dict[str, Tensor]:
    """Each caption and "" as the exported text encoder gives it to a sampling run, cut to the length that the base
    was trained with. returns: [1, TOKENS, d_model]
    """
    host.register_folders(CHECKPOINTS)
    clip = host.load_text_encoder("tiny_puppet_umt5.safetensors")
    return {c: clip.encode_from_tokens(clip.tokenize(c)).float()[:, : text.TOKENS] for c in sorted({*captions, ""})}


@torch.no_grad()
def guided(teacher: nn.Module, x: Tensor, sigma: Tensor, with_text: Tensor, without: Tensor) -> Tensor:
    """returns: velocity at guidance strength GUIDANCE; rows without text have the plain one"""
    bare = without.expand_as(with_text)
    flow, plain = teacher(torch.cat([x, x]), torch.cat([sigma, sigma]) * 1000, torch.cat([with_text, bare])).chunk(2)
    return plain.float() + GUIDANCE * (flow.float() - plain.float())


@dataclass
class Training:
    """What goes on where it stopped."""

    learned: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    made: dict
    step: int = 0
    seconds: float = 0.0

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for p, value in zip(self.learned, saved["learned"], strict=True):
            p.data.copy_(value)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self, path: Path) -> None:
        save({"learned": [p.data for p in self.learned], "optimiser": self.optimiser.state_dict(), "step": self.step,
              "seconds": self.seconds, **self.made}, path)  # fmt: skip

    def learn(self, loss: Tensor, total: int) -> float:
        """One step down; the rate rises for 20 steps and falls to 0 along a cosine. returns: the loss"""
        pace = min(1, (self.step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * self.step / total))
        self.optimiser.param_groups[0]["lr"] = RATE * pace
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()


def train(minutes: float, batch: int, total: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    teacher, student, state = base(), base(), FOLDER / "state.pt"
    learned = [p for layer in adapt(student).values() for p in (layer.down, layer.up)]
    optimiser = torch.optim.AdamW(learned, RATE, betas=(0.9, 0.98), weight_decay=0.0)
    training = Training(learned, optimiser, {"batch": batch})
    if state.exists():
        training.load(state)
    for block in (*teacher.blocks, *student.blocks):
        block.compile()
    data, curve, recent = dit.Data("t2v", training.step), Curve(FOLDER / "curve.csv"), []
    training.made["clips"] = len(data.videos)
    texts = contexts(data.captions)
    began = mark = time.time()
    while training.step < total and time.time() - began < 60 * minutes:
        recent.append(training.learn(distance(teacher, student, data.batch(batch), texts), total))
        training.seconds, mark = training.seconds + time.time() - mark, time.time()
        if training.step % 10 == 0:
            curve.add(step=training.step, loss=sum(recent) / len(recent), seconds=training.seconds)
            recent.clear()
        if training.step % 50 == 0:
            training.save(state)
    training.save(state)


def distance(teacher: nn.Module, student: nn.Module, data: tuple, texts: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the student's velocity to the guided one of the teacher, on one batch."""
    video, _, captions = data
    u = (torch.arange(len(video)) + torch.rand(len(video))) / len(video)  # a noise level from each equal slice
    sigma = dit.SHIFT * u / (1 + (dit.SHIFT - 1) * u)
    s = sigma.view(-1, 1, 1, 1, 1)
    x, context = (1 - s) * video + s * torch.randn_like(video), torch.cat([texts[c] for c in captions])
    with torch.autocast("cpu", torch.bfloat16):
        goal = guided(teacher, x, sigma, context, texts[""])
        flow = student(x, sigma * 1000, context)
    return (flow.float() - goal).square().mean()


def export() -> None:
    saved = torch.load(FOLDER / "state.pt", weights_only=True)
    names, learned = list(adapt(base())), iter(saved["learned"])
    weights = {}
    for name in names:
        weights[f"diffusion_model.{name}.lora_A.weight"] = next(learned)
        weights[f"diffusion_model.{name}.lora_B.weight"] = next(learned)
    made = {"what": f"LoRA of rank {RANK} for tiny_puppet_t2v, on its attention and feed-forward layers: guidance "
                    f"{GUIDANCE:g} in one evaluation, for use with cfg 1",
            "data": f"{saved['clips']} Puppet World clips of the prompt language (192 training prompts)",
            "loss": f"squared error to the base's own velocity at guidance {GUIDANCE:g}; text dropped in "
                    f"{dit.DROP:.0%} of the clips, where the base's plain velocity is the goal",
            "steps": saved["step"], "batch": saved["batch"], "seconds": round(saved["seconds"]),
            "device": "1 CPU core, bfloat16 autocast", "seed": 0}  # fmt: skip
    save_checkpoint(weights, CHECKPOINTS / "loras" / f"{NAME}.safetensors", torch.float16, made)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--export", action="store_true")
    args = parser.parse_args()
    if not args.export:
        train(args.minutes, args.batch, args.steps)
    export()
