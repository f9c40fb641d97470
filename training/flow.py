"""What trainings of rectified flow share: noise levels, optimisers, an average of the weights, going on after a stop.

x_s = (1 - s) x + s noise, the model predicts noise - x. Matrices of the blocks learn by Muon, the rest by AdamW.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .log import Curve
from .muon import Muon
from .state import save

SHIFT = 3.0  # towards noise, as the workflows sample (Esser et al., 2024, section 5.3.2)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """One from each of `count` equal slices, shifted. returns: [count] 0..1"""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def noised(clip: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """clip, noise: [B, C, F, H, W]; sigma: [B]"""
    s = sigma.view(-1, *[1] * (clip.ndim - 1))
    return (1 - s) * clip + s * noise


def clip_loss(flow: Tensor, clip: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Squared error of the clean clip that a flow stands for, which is s^2 times that of the flow.

    Where and what bodies are is settled at high noise, and that is where it counts most.
    """
    s = sigma.view(-1, *[1] * (clip.ndim - 1))
    return (s * (flow.float() - (noise - clip))).square().mean()


class Learner:
    """Trains `model` on a loss; its state lies in folder/state.pt.

    matrices: prefix of the names whose matrices Muon takes    keep: of the average, per step
    """

    def __init__(self, model: nn.Module, folder: Path, total: int, muon_rate: float = 0.02, rate: float = 2e-3,
                 keep: float = 0.998, matrices: str = "blocks."):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.model, self.folder, self.total, self.keep = model, folder, total, keep
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        big = [p for n, p in learned.items() if p.ndim == 2 and matrices in n and "person" not in n]
        chosen = {id(p) for p in big}
        self.rest = [p for p in learned.values() if id(p) not in chosen]
        self.rates = (muon_rate, rate)
        self.optimisers = [Muon(big, muon_rate, 0.95, 0.1),
                           torch.optim.AdamW(self.rest, rate, betas=(0.9, 0.98), weight_decay=0.01)]  # fmt: skip
        self.names = tuple(learned)
        self.average = {n: p.detach().clone() for n, p in learned.items()}
        self.step, self.seconds = 0, 0.0
        if (folder / "state.pt").exists():
            saved = torch.load(folder / "state.pt", weights_only=True)
            model.load_state_dict(saved["learned"], strict=False)
            for optimiser, part in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(part)
            self.average, self.step, self.seconds = saved["average"], saved["step"], saved["seconds"]

    def run(self, loss: Callable[[int], Tensor], minutes: float = 1e9, every: int = 250) -> None:
        """loss: step -> a number to make small. Saves every so many steps, and at the end."""
        curve, recent, began, mark = Curve(self.folder / "curve.csv"), [], time.time(), time.time()
        while self.step < self.total and time.time() - began < 60 * minutes:
            fall = 0.5 * (1 + math.cos(math.pi * self.step / self.total))
            pace = min(1, (self.step + 1) / 100) * (0.03 + 0.97 * fall)
            for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
                optimiser.param_groups[0]["lr"] = rate * pace
            found = loss(self.step)
            self.model.zero_grad(set_to_none=True)
            found.backward()
            nn.utils.clip_grad_norm_(self.rest, 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            keep = min(self.keep, self.step / (self.step + 20))
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    if name in self.average:
                        self.average[name].lerp_(p, 1 - keep)
            recent.append(found.item())
            if self.step % 50 == 0:
                curve.add(step=self.step, loss=sum(recent) / len(recent), seconds=self.seconds + time.time() - mark)
                recent.clear()
            if self.step % every == 0 or self.step == self.total:
                self.seconds, mark = self.seconds + time.time() - mark, time.time()
                self.save()
        self.seconds += time.time() - mark
        self.save()

    def save(self) -> None:
        learned = {n: p.detach() for n, p in self.model.named_parameters() if n in self.average}
        save({"learned": learned, "optimisers": [o.state_dict() for o in self.optimisers], "average": self.average,
              "step": self.step, "seconds": self.seconds}, self.folder / "state.pt")  # fmt: skip


def averaged(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the averaged weights of a training."""
    saved = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(saved["average"], strict=False)
    return model.eval().requires_grad_(False)
