"""Cameras of Puppet World: a pinhole per frame, and the moves that people ask for.

F frames. OpenCV convention: x right, y down, z forward. K in pixels; w2c maps world metres to camera metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .choice import check_choice

MOVES = ("hold", "orbit", "dolly", "pan")


@dataclass(frozen=True)
class Camera:
    """How the camera is placed and moved.

    amount: degrees per second (orbit: towards +x; pan: to the right) or metres per second towards the aim (dolly)
    distance: from the aim along the floor, metres    height: above the floor, metres
    view: metres that the longer side of the picture spans at `distance`    angle: start of the orbit, degrees from +z
    aim: the point in the picture's middle, metres
    raises: ValueError for an unknown move, or a camera on top of its aim or without a view
    """

    move: str = "hold"
    amount: float = 0.0
    distance: float = 5.0
    height: float = 1.35
    view: float = 4.2
    angle: float = 0.0
    aim: tuple[float, float, float] = (0.0, 0.85, 0.0)

    def __post_init__(self) -> None:
        check_choice("camera move", self.move, MOVES)
        if not (self.distance > 0 and self.view > 0):
            raise ValueError(f"Puppet World: the camera needs a distance and a view above 0 m, "
                             f"got {self.distance} and {self.view}.")  # fmt: skip


@dataclass(frozen=True)
class CameraTrack:
    """K: [F, 3, 3]    w2c: [F, 4, 4]"""

    K: Tensor
    w2c: Tensor

    def at(self, frames: slice) -> CameraTrack:
        return CameraTrack(self.K[frames], self.w2c[frames])

    @property
    def centre(self) -> Tensor:
        """Camera centres in the world. returns: [F, 3]"""
        return -(self.w2c[:, :3, :3].transpose(1, 2) @ self.w2c[:, :3, 3:])[..., 0]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points to pixels; meaningless where the depth is not positive.

        points: [F, ..., 3]    returns: pixels [F, ..., 2], depth [F, ...] (metres along the view axis)
        """
        flat = points.flatten(1, -2) if points.ndim > 2 else points[:, None]
        cam = flat @ self.w2c[:, :3, :3].transpose(1, 2) + self.w2c[:, None, :3, 3]
        depth = cam[..., 2]
        pixel = (cam @ self.K.transpose(1, 2))[..., :2] / depth.clamp(min=1e-6)[..., None]
        return pixel.view(*points.shape[:-1], 2), depth.view(points.shape[:-1])


def track(camera: Camera, t: Tensor, height: int, width: int) -> CameraTrack:
    """The camera over time for a picture of height x width pixels.

    t: [F] seconds
    """
    aim = torch.tensor(camera.aim).expand(len(t), 3)
    angle = torch.full_like(t, math.radians(camera.angle))
    distance = torch.full_like(t, camera.distance)
    if camera.move == "orbit":
        angle = angle + math.radians(camera.amount) * t
    if camera.move == "dolly":
        distance = (distance - camera.amount * t).clamp(min=1.0)
    above = torch.full_like(t, camera.height - camera.aim[1])
    centre = aim + torch.stack([distance * angle.sin(), above, distance * angle.cos()], -1)
    forward = normalize(aim - centre, dim=-1)
    if camera.move == "pan":
        turn = -math.radians(camera.amount) * t
        c, s = turn.cos(), turn.sin()
        x, y, z = forward.unbind(-1)
        forward = torch.stack([c * x + s * z, y, -s * x + c * z], -1)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(forward)
    right = normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    w2c = torch.eye(4).repeat(len(t), 1, 1)
    w2c[:, :3, :3] = torch.stack([right, down, forward], 1)
    w2c[:, :3, 3] = -(w2c[:, :3, :3] @ centre[..., None])[..., 0]
    focal = max(width, height) * camera.distance / camera.view
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]).repeat(len(t), 1, 1)
    return CameraTrack(K, w2c)
