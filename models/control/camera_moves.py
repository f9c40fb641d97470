"""Camera moves by name, and the camera that they start from.

T pixel frames. World metres, y up; cameras as in `camera`. A move is laid over a start that may move itself: its amount
is reached at the last frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .body import BodyTrack
from .camera import CameraPath

MOVES = ("hold", "orbit", "dolly", "pan", "tilt", "truck", "crane", "zoom")
EASES = ("linear", "ease in and out")
MARGIN = 0.9  # share of the picture that a fitted view fills
FOV = 40.0  # degrees from top to bottom where nothing says otherwise: a whole person from 3 m
NEAREST = 0.3  # metres that a dolly keeps from its aim
_UP = (0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Stand:
    """Where a camera stands and what it looks at. centre, aim: [3] metres    fov: degrees, from top to bottom"""

    centre: Tensor
    aim: Tensor
    fov: float = FOV

    def path(self, frames: int, height: int, width: int) -> CameraPath:
        """The camera at rest. raises: ValueError when it stands on its aim"""
        focal = height / (2 * math.tan(math.radians(self.fov) / 2))
        K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
        w2c = looking(self.centre, self.aim)
        return CameraPath(K.repeat(frames, 1, 1), w2c.repeat(frames, 1, 1), height, width)


def looking(centre: Tensor, aim: Tensor) -> Tensor:
    """World to camera of one that stands upright. centre, aim: [3] -> [4, 4]"""
    centre, aim = centre.double(), aim.double()
    if (aim - centre).norm() < 1e-6:
        raise ValueError("Camera: it stands on the point it looks at. Move it away.")
    forward = normalize(aim - centre, dim=-1)
    steep = abs(float(forward[1])) > 1 - 1e-6  # straight up or down: any side is as good
    up = torch.tensor((0.0, 0.0, -1.0) if steep else _UP).double()
    right = normalize(torch.linalg.cross(forward, up), dim=-1)
    w2c = torch.eye(4).double()
    w2c[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    w2c[:3, 3] = -w2c[:3, :3] @ centre
    return w2c.float()


def default_stand(height: float | None = None, distance: float | None = None, angle: float = 0.0,
                  fov: float = FOV) -> Stand:  # fmt: skip
    """For scenes whose bodies are not known: a person at the origin. Metres, degrees from +z towards +x."""
    aim = torch.tensor([0.0, 0.9, 0.0])
    return Stand(_placed(aim, angle, distance or 5.0, 1.35 if height is None else height), aim, fov)


def stand_before(body: BodyTrack, height: int, width: int, above: float | None = None, distance: float | None = None,
                 angle: float = 0.0, fov: float = FOV, sweep: float = 0.0) -> Stand:  # fmt: skip
    """A stand that sees the whole body over the whole clip, as near as it can be.

    height, width: pixels of the picture    above: of the camera over the floor, metres; level with the aim if None
    distance: metres from the aim along the floor; as near as the body stays in the picture if None
    angle: degrees from +z    sweep: degrees that an orbit from there goes on, from where the body is seen too
    raises: ValueError when no point is known
    """
    points = body.points[body.known]
    if not len(points):
        raise ValueError("Camera: no point of the body is known, so there is nothing to look at.")
    aim = (points.amin(0) + points.amax(0)) / 2
    focal = height / (2 * math.tan(math.radians(fov) / 2))
    if distance is None:
        distance = 1.0
        for _ in range(10 if above is not None else 1):  # the slope of the view depends on it: within 2 % by then
            distance = max(_needed(points, aim, _placed(aim, angle + sweep * i / 4, distance, above), focal, height,
                                   width) for i in range(5 if sweep else 1))  # fmt: skip
    return Stand(_placed(aim, angle, distance, above), aim, fov)


def _placed(aim: Tensor, angle: float, distance: float, above: float | None) -> Tensor:
    turn = math.radians(angle)
    side = torch.tensor([distance * math.sin(turn), 0.0, distance * math.cos(turn)])
    centre = aim + side
    return centre if above is None else torch.stack([centre[0], torch.tensor(float(above)), centre[2]])


def _needed(points: Tensor, aim: Tensor, centre: Tensor, focal: float, height: int, width: int) -> float:
    """Metres along the floor from which all points are within the margin, in the direction of `centre`."""
    rotation = looking(centre, aim)[:3, :3]
    x, y, z = ((points - aim) @ rotation.T).unbind(-1)
    away = torch.maximum(x.abs() * focal / (MARGIN * width / 2), y.abs() * focal / (MARGIN * height / 2)) - z
    level = float((aim - centre)[[0, 2]].norm() / (aim - centre).norm())
    return max(float(away.max()), NEAREST) * level


def aim_of(camera: CameraPath, body: BodyTrack | None, distance: float = 3.0) -> Tensor:
    """What an orbit goes around: the point of the middle ray that is as far away as the body, in the first frame.

    returns: [3]
    """
    w2c = camera.w2c[0]
    if body is not None and body.known.any():
        points = body.points[body.known]
        deep = float((w2c[2, :3] @ ((points.amin(0) + points.amax(0)) / 2)) + w2c[2, 3])
        distance = deep if deep > NEAREST else distance
    return camera.centre[0] + distance * w2c[2, :3]


def lengthened(camera: CameraPath, frames: int) -> CameraPath:
    """Its first frames, or all of them and its last one held."""
    return camera.at(torch.arange(frames).clamp(max=camera.frames - 1))


def moved(start: CameraPath, move: str, amount: float, aim: Tensor, ease: str = "linear") -> CameraPath:
    """A move laid over a start.

    amount: degrees (orbit: of the camera towards its own right; pan: view to the right; tilt: view up), metres (dolly:
        forward; truck: to the right; crane: up), or times the focal length (zoom)
    aim: [3] what an orbit goes around and a dolly does not pass    raises: ValueError
    """
    if move not in MOVES or ease not in EASES:
        raise ValueError(f"Camera move {move!r}, {ease!r} is not known. Accepted: {', '.join(MOVES)}; "
                         f"{', '.join(EASES)}.")  # fmt: skip
    if move == "zoom" and not amount > 0:
        raise ValueError(f"Camera: a zoom of {amount:g} times. Accepted: more than 0; 2 shows half as much.")
    share = torch.linspace(0, 1, start.frames).double() if start.frames > 1 else torch.zeros(1).double()
    if ease != "linear":
        share = share * share * (3 - 2 * share)
    K, w2c = start.K.clone(), start.w2c.double()
    rotation, centre = w2c[:, :3, :3], start.centre.double()
    right, forward = rotation[:, 0], rotation[:, 2]
    turn = torch.eye(3).double().expand(start.frames, 3, 3)
    if move == "orbit":
        turn = _about_up(math.radians(amount) * share)
        centre = aim.double() + (turn @ (centre - aim.double())[..., None])[..., 0]
    elif move == "pan":
        turn = _about_up(-math.radians(amount) * share)
    elif move == "tilt":
        turn = _about(right, math.radians(amount) * share)
    elif move == "zoom":
        K[:, :2, :2] *= (amount**share)[:, None, None].to(K)
    elif move != "hold":
        way = {"dolly": forward, "truck": right, "crane": torch.tensor(_UP).double().expand_as(right)}[move]
        far = amount * share
        if move == "dolly":
            far = far.minimum(((aim.double() - centre) * forward).sum(-1).sub(NEAREST).clamp(min=0))
        centre = centre + far[:, None] * way
    rotation = rotation @ turn.transpose(1, 2)
    w2c = w2c.clone()
    w2c[:, :3, :3], w2c[:, :3, 3] = rotation, -(rotation @ centre[..., None])[..., 0]
    return CameraPath(K, w2c.to(start.w2c), start.height, start.width)


def _about_up(angle: Tensor) -> Tensor:
    """Rotation about the world's y. [T] radians -> [T, 3, 3]"""
    return _about(torch.tensor(_UP).to(angle).expand(len(angle), 3), angle)


def _about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation about unit axes (Rodrigues). axis: [T, 3]    angle: [T] -> [T, 3, 3]"""
    o = torch.zeros_like(angle)
    x, y, z = axis.unbind(-1)
    skew = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    s, c = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3).to(angle) + s * skew + (1 - c) * (skew @ skew)
