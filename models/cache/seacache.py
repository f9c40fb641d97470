"""SeaCache (arXiv 2602.18993): the model runs when the picture inside the noise has changed enough.

Between two steps most of the latent's change is noise. A Wiener filter of the noise level leaves what is picture, if
pictures have power 1 / f^p: at high noise the coarse, at low noise all. Needs no coefficients of a model.

Differs from the paper: it filters the features of the first block, this the latent itself, so nothing of the model
runs for the decision. The power is scaled to that of a latent of variance 1, where the paper leaves its scale open.
"""
# B batch   C channels   T H W: latent frames, rows, columns (any number of axes after C works)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .job import Job
from .pace import pace


def picture_power(sizes: tuple[int, ...], exponent: float, device: torch.device) -> Tensor:
    """Power of pictures at each frequency of a grid, of mean 1: 1 / f^p, where f counts cycles per latent cell.

    returns: sizes; the constant part counts as the lowest frequency
    """
    axes = [torch.fft.fftfreq(n, device=device) for n in sizes]
    radius = sum(f.square() for f in torch.meshgrid(*axes, indexing="ij")).sqrt()
    power = radius.clamp(min=1 / max(sizes)).pow(-exponent)
    return power / power.mean()


def shares(sigma: float, flow: bool) -> tuple[float, float]:
    """(picture, noise) in a latent: 1 - sigma and sigma for flow models. Others add noise of deviation sigma to the
    picture; scaled to variance 1 that is 1 and sigma over sqrt(1 + sigma^2)."""
    if flow:
        return 1 - sigma, sigma
    scale = math.hypot(1, sigma)
    return 1 / scale, sigma / scale


def picture_part(x: Tensor, power: Tensor, sigma: float, flow: bool) -> Tensor:
    """What a Wiener filter takes for picture, up to a factor: its gains have mean 1 over all frequencies.

    x: [B, C, T, H, W] latent at sigma    power: [T, H, W]    returns: fp32, like x
    """
    a, b = shares(sigma, flow)
    gain = power / (a * a * power + b * b)   # a * power / (...) up to a factor, so that pure noise, a = 0, has a limit
    gain = gain / gain.mean()
    scaled = x.float() if flow else x.float() / math.hypot(1, sigma)
    axes = tuple(range(2, x.ndim))
    half = gain[..., : power.shape[-1] // 2 + 1]   # the spectrum of real numbers is kept by half
    return torch.fft.irfftn(torch.fft.rfftn(scaled, dim=axes) * half, s=power.shape, dim=axes)


def change(old: Tensor, new: Tensor) -> Tensor:
    """Mean absolute difference, relative to the mean absolute value of `new`. returns: one number, on the device"""
    return (new - old).abs().mean() / new.abs().mean().clamp(min=1e-12)


@dataclass
class Seen:
    """last: `picture_part` of the step before    changed: sum of the changes since the model ran"""

    power: Tensor | None = None
    last: Tensor | None = None
    changed: float = 0.0


@pace("seacache")
@dataclass(frozen=True)
class SeaCache:
    """threshold: changes of the picture part that are forecast over, summed    max_skips: forecasts in a row
    exponent: p of the power 1 / f^p
    """

    threshold: float = 0.2
    max_skips: int = 4
    exponent: float = 2.0

    label: ClassVar[str] = "SeaCache"
    summary: ClassVar[str] = "a step runs when the picture inside the noise has changed enough"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("threshold", default=0.2, min=0.0, max=5.0, step=0.01,
                           tooltip="How much the picture inside the noise may change before the model runs again, as "
                           "a share. Higher is faster and further from the full render; 0 runs every step."),
            io.Int.Input("max_skips", default=4, min=0, max=50,
                         tooltip="Forecasts in a row at most, however little changes."),
            io.Float.Input("exponent", default=2.0, min=0.0, max=4.0, step=0.1,
                           tooltip="How fast detail is thought to fade towards high frequencies: 2 as in photographs; "
                           "0 looks at all detail alike, noise included."),
        ]  # fmt: skip

    def begin(self) -> Seen:
        return Seen()

    def runs(self, memory: Seen, gap: int, job: Job) -> bool:
        x = video_of(job)
        if memory.power is None:
            memory.power = picture_power(tuple(x.shape[2:]), self.exponent, x.device)
        now, before = picture_part(x, memory.power.to(x.device), job.tick.sigma, job.tick.flow), memory.last
        if gap == 1:
            memory.changed = 0.0
        if before is not None:
            memory.changed += change(before.to(x.device), now).item()   # the one wait for the device in a step
        memory.last = now
        return gap > self.max_skips or memory.changed > self.threshold

    def foreseen(self, memory: Seen, gap: int) -> bool | None:
        return True if gap > self.max_skips else None


def video_of(job: Job) -> Tensor:
    """The video of the first prompt's rows: [B, C, T, H, W]. All prompts have the same latent; sound is left out."""
    x = job.step.x[job.step.forward.branches[0].rows]
    if len(job.step.shapes) == 1:
        return x
    shape = job.step.shapes[0][1:]
    return x.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)
