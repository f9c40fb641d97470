"""Units and axes of tracks from elsewhere, brought to metres with y up.

P people   T frames   N points. What a file does not say is read off the body: its size tells the unit, and the way from
hips to head tells up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import CameraPath

UNITS = {"auto": 0.0, "metres": 1.0, "centimetres": 0.01, "millimetres": 0.001}
UPS = {
    "y up": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "y down": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)),  # cameras of OpenCV
    "z up": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),  # AMASS, Blender
}
AXES = ("auto", *UPS)


@dataclass(frozen=True)
class WorldFrame:
    """scale: metres a unit    up: one of UPS"""

    scale: float
    up: str

    @property
    def turn(self) -> Tensor:
        """From the file's axes to ours. returns: [3, 3]"""
        return torch.tensor(UPS[self.up])

    def points(self, x: Tensor) -> Tensor:
        """[..., 3] -> [..., 3] metres"""
        return x @ (self.scale * self.turn.to(x)).T

    def directions(self, x: Tensor) -> Tensor:
        return x @ self.turn.to(x).T

    def camera(self, K: Tensor, w2c: Tensor, height: int, width: int) -> CameraPath:
        """A camera of the file. K: [T, 3, 3]    w2c: [T, 4, 4] of the file's axes and units"""
        moved = w2c.clone()
        moved[:, :3, :3] = w2c[:, :3, :3] @ self.turn.to(w2c).T
        moved[:, :3, 3] = w2c[:, :3, 3] * self.scale
        return CameraPath(K, moved, height, width)


def frame_of(points: Tensor, joints: Tensor | None, unit: str = "auto", up: str = "auto") -> WorldFrame:
    """The frame of a track. points: [P, T, N, 3]; joints: [P, T, 24, 3] or None; NaN is left out

    unit: of UNITS    up: of AXES    raises: ValueError when up is to be found and points neither up nor down
    """
    scale = UNITS[unit] or _unit(points)
    return WorldFrame(scale, _up(points, joints) if up == "auto" else up)


def _unit(points: Tensor) -> float:
    """Metres a unit: the larger side of the box around a person is 0.5 to 3 m. The middle of all frames counts."""
    side = _box(points).amax(-1).flatten()
    middle = float(side[side.isfinite() & (side > 0)].median()) if (side > 0).any() else 1.0
    return 1.0 if middle < 8 else 0.01 if middle < 400 else 0.001


def _up(points: Tensor, joints: Tensor | None) -> str:
    if joints is None:  # a body is longer upright than along; the sign is a guess, and the report names the choice
        box = _box(points)
        longest = int(box.nan_to_num(0.0).flatten(0, 1).median(0).values.argmax())
        return "z up" if longest == 2 else "y up"
    hips, head = joints[:, :, 1:3].mean(2), joints[:, :, 15]
    way = (head - hips).flatten(0, 1)
    way = way[way.isfinite().all(-1)]
    way = way.mean(0) if len(way) else torch.zeros(3)
    axis = int(way.abs().argmax())
    found = {(1, True): "y up", (1, False): "y down", (2, True): "z up"}.get((axis, bool(way[axis] > 0)))
    if found is None:
        raise ValueError("which way is up cannot be told from the joints: heads are not above hips along y or z. "
                         f"Choose it: {', '.join(UPS)}.")  # fmt: skip
    return found


def _box(points: Tensor) -> Tensor:
    """Sides of the box around each person in each frame. [P, T, N, 3] -> [P, T, 3]; NaN without points"""
    known = points.isfinite().all(-1, keepdim=True)
    low = torch.where(known, points, torch.inf).amin(2)
    high = torch.where(known, points, -torch.inf).amax(2)
    return torch.where((high >= low), high - low, torch.nan)
