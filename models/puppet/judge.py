"""Reads a clip back: how many puppets, what shirt, which way they went. From pixels alone, so also of generated clips.

Shirts are the only strongly saturated things in the scenes of the small language that are not orange (skin, hair). So a
shirt is found by hue and saturation, puppets are counted as connected shirts, and the direction is the track of the
shirts' centroid. Balls may have any colour: clips with balls are not for this judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .scene import SHIRT_HUES

SATURATION, VALUE = 0.45, 0.22  # what counts as cloth
SKIN_HUES = (10.0, 40.0)  # degrees: skin and hair
SMALLEST = 0.0012  # of the picture: smaller specks are not puppets
TRAVEL = 0.06  # of the picture's width: less than that over the clip is "in place"


@dataclass(frozen=True)
class Verdict:
    """count: puppets    shirt: name of the commonest shirt colour, "" without any    direction: left, right or place"""

    count: int
    shirt: str
    direction: str


def judge(clip: Tensor) -> Verdict:
    """clip: [F, H, W, 3] 0..1"""
    hue, saturation, value = hue_saturation_value(clip)
    cloth = (saturation > SATURATION) & (value > VALUE) & ~((hue > SKIN_HUES[0]) & (hue < SKIN_HUES[1]))
    counts = []
    for frame in cloth:
        sizes = component_sizes(frame)
        counts.append(sum(size >= SMALLEST * frame.numel() for size in sizes))
    return Verdict(int(np.median(counts) + 0.5), _shirt(hue[cloth]), _direction(cloth))


def _shirt(hue: Tensor) -> str:
    if not hue.numel():
        return ""
    names = list(SHIRT_HUES)
    centre = torch.tensor([float(SHIRT_HUES[n]) for n in names])
    apart = (hue[:, None] - centre + 180) % 360 - 180
    return names[int(apart.abs().argmin(1).bincount(minlength=len(names)).argmax())]


def _direction(cloth: Tensor) -> str:
    """Slope of the centroid's track, as the share of the width crossed over the clip."""
    width = cloth.shape[2]
    columns = torch.arange(width, dtype=torch.float32)
    mass = cloth.sum((1, 2)).float()
    seen = mass > 0
    if seen.sum() < 3:
        return "place"
    centre = (cloth.sum(1).float() * columns).sum(1)[seen] / mass[seen] / width
    t = torch.arange(len(cloth), dtype=torch.float32)[seen] / max(len(cloth) - 1, 1)
    slope = ((t - t.mean()) * (centre - centre.mean())).sum() / (t - t.mean()).square().sum()
    return "right" if slope > TRAVEL else "left" if slope < -TRAVEL else "place"


def component_sizes(mask: Tensor) -> list[int]:
    """Sizes in pixels of the 8-connected components. mask: [H, W] bool"""
    from scipy import ndimage  # ComfyUI requires scipy; imported here to keep start-up light

    labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    return np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()


def hue_saturation_value(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rgb: [..., 3] 0..1 -> hue in degrees, saturation, value, each [...]"""
    high, low = rgb.amax(-1), rgb.amin(-1)
    span = (high - low).clamp(min=1e-6)
    r, g, b = rgb.unbind(-1)
    hue = torch.where(high == r, ((g - b) / span) % 6, torch.where(high == g, (b - r) / span + 2, (r - g) / span + 4))
    return hue * 60, (high - low) / high.clamp(min=1e-6), high
