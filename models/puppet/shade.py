"""The look of Puppet World: garments, light, the checkered floor, the sky and the plate.

F frames   P puppets   C primitives   M points on bodies. Colours are RGB 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .body import LIMBS, limb_joints, rest_joints
from .camera import CameraTrack
from .render import FAR, Bodies, Hits, directions, rays_at
from .scene import PATTERNS, SceneSpec

LIGHT = (-0.45, 0.75, 0.5)  # where it comes from
_TEXTURES = (*PATTERNS, "head")


def shade(spec: SceneSpec, bodies: Bodies, roots: Tensor, camera: CameraTrack, hits: Hits) -> Tensor:
    """The picture behind the hits, one ray a pixel.

    roots: [F, P, 3] pelvis of each puppet, for its shadow on the floor
    returns: [F, H, W, 3]
    """
    picture = _backdrop(spec, roots, camera, *hits.primitive.shape[1:])
    seen = hits.primitive >= 0
    if seen.any():
        frame, y, x = seen.nonzero(as_tuple=True)
        d = rays_at(camera, frame, torch.stack([x, y], -1) + 0.5)
        point = camera.centre[frame] + hits.depth[seen][:, None] * d
        picture[seen] = _body_colour(spec, bodies, frame, hits.primitive[seen], point)
    return picture


def floor_depth(spec: SceneSpec, eye: Tensor, d: Tensor) -> Tensor:
    """Depth of the floor along rays; inf above the horizon, seen from below, or where the scene has a plate.

    eye: [..., 3] where the rays start    d: [..., 3] world directions of unit depth    returns: [...]
    """
    if spec.ground != "floor":
        return torch.full(d.shape[:-1], float("inf"))
    s = -eye[..., 1] / d[..., 1].clamp(max=-1e-6)
    return torch.where((d[..., 1] < -1e-6) & (s > 0) & (s < FAR), s, float("inf"))


def _backdrop(spec: SceneSpec, roots: Tensor, camera: CameraTrack, height: int, width: int) -> Tensor:
    """returns: [F, H, W, 3]"""
    if spec.ground != "floor":
        tone = torch.linspace(1.03, 0.95, height)[None, :, None, None]
        return (torch.tensor(spec.plate) * tone).expand(len(camera.K), height, width, 3).clone()
    d = directions(camera, height, width)
    eye = camera.centre[:, None, None]
    s = floor_depth(spec, eye, d)
    up = normalize(d, dim=-1)[..., 1:2].clamp(0, 1)
    sky = torch.tensor([0.86, 0.89, 0.92]) - up * torch.tensor([0.22, 0.17, 0.08])
    ground = eye + s.clamp(max=FAR)[..., None] * d
    parity = ((ground[..., 0] / 0.8).floor() + (ground[..., 2] / 0.8).floor()) % 2
    contrast = (-s.clamp(max=FAR) / 9).exp()  # tiles melt into one grey far away, before they alias
    tone = 0.60 + 0.11 * contrast * (2 * parity - 1)
    for root in roots.unbind(1):
        apart = (ground[..., (0, 2)] - root[:, None, None, (0, 2)]).square().sum(-1)
        tone = tone * (1 - 0.28 * (-apart / 0.07).exp())
    return torch.where(s[..., None].isfinite(), tone[..., None] * torch.tensor([1.0, 0.995, 0.98]), sky)


def _body_colour(spec: SceneSpec, bodies: Bodies, frame: Tensor, primitive: Tensor, point: Tensor) -> Tensor:
    """Colour at points on primitives. frame, primitive: [M]    point: [M, 3] -> [M, 3]"""
    first, second, texture, rest = _wardrobe(spec)
    rotation = bodies.rotation[frame, primitive]
    local = (rotation.transpose(1, 2) @ (point - bodies.origin[frame, primitive])[..., None])[..., 0]
    axis = bodies.axis[primitive]
    share = ((local * axis).sum(-1) / axis.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    normal_local = normalize(local - share[:, None] * axis, dim=-1)
    normal = (rotation @ normal_local[..., None])[..., 0]
    other = _second_colour(local + rest[primitive], local, texture[primitive])
    colour = torch.where(other[:, None], second[primitive], first[primitive])
    light = normalize(torch.tensor(LIGHT), dim=0)
    return colour * (0.62 + 0.38 * (normal @ light).clamp(min=0) + 0.06 * normal[:, 1])[:, None]


def _second_colour(rest: Tensor, local: Tensor, kind: Tensor) -> Tensor:
    """Where a garment shows its second colour.

    rest: [M, 3] metres in the rest pose    local: [M, 3] metres from the limb's joint    kind: [M] index in _TEXTURES
    returns: [M] bool
    """
    stripes = (rest[:, 1] / 0.15) % 1 < 0.45
    checks = (rest / 0.13).floor().sum(-1) % 2 < 0.5
    dots = ((rest / 0.15) % 1 - 0.5).norm(dim=-1) < 0.38
    hair = (local[:, 1] > 0.10) | ((local[:, 2] < -0.02) & (local[:, 1] > -0.06))
    plain = torch.zeros_like(stripes)
    return torch.stack([plain, stripes, checks, dots, hair]).gather(0, kind[None])[0]


def _wardrobe(spec: SceneSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both colours, texture and rest position of each primitive. returns: [C, 3], [C, 3], [C], [C, 3]"""
    first, second, texture, rest = [], [], [], []
    for puppet in spec.puppets:
        worn = [puppet.garment(limb) for limb in LIMBS]
        first += [one.colour for one in worn]
        second += [one.second for one in worn]
        texture += [_TEXTURES.index(one.pattern) for one in worn]
        rest.append(rest_joints(puppet.height)[limb_joints()])
    for ball in spec.balls:
        first.append(ball.colour)
        second.append((0.95, 0.95, 0.95))
        texture.append(_TEXTURES.index("stripes"))
        rest.append(torch.zeros(1, 3))
    return torch.tensor(first), torch.tensor(second), torch.tensor(texture), torch.cat(rest)
