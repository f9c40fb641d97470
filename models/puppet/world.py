"""Puppet World rendered: pictures, and the truth behind them.

F frames   P puppets   C primitives. One call poses everything, casts the rays and shades; what else one wants to know
(flow, alpha, joints in the image, surface points, sound) is derived from the same arrays on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .body import LIMBS, PARTS, limb_axes, limb_joints, rest_joints
from .camera import CameraTrack, track
from .motion import act
from .render import FAR, Bodies, Hits, cast, directions
from .scene import PATTERNS, Ball, SceneSpec

BACKGROUND, FLOOR, BALL = 0, 1, 2  # part map codes; limbs follow in the order of PARTS
FIRST_LIMB_PART = 3
GRAVITY = 9.81
LIGHT = (-0.45, 0.75, 0.5)
CHUNK_RAYS = 1 << 21  # about 0.4 GB of candidates and shading at a time
_TEXTURES = (*PATTERNS, "head")


def _no_tick(done: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class World:
    """A posed scene seen by a camera; all truth hangs on it.

    joints: [F, P, J, 3] metres    owner: [C] puppet of each primitive, P + i for ball i
    tick: called with the number of frames shaded so far; what it raises ends the work
    """

    spec: SceneSpec
    fps: float
    height: int
    width: int
    camera: CameraTrack
    bodies: Bodies
    joints: Tensor
    owner: Tensor
    tick: Callable[[int], None] = _no_tick

    @property
    def frames(self) -> int:
        return len(self.camera.K)

    def at(self, frames: slice) -> World:
        """The same scene over fewer frames."""
        return replace(self, camera=self.camera.at(frames), bodies=self.bodies.at(frames), joints=self.joints[frames])

    def _parts_of_time(self, rays: int) -> list[slice]:
        """Spans of frames that cast at most CHUNK_RAYS rays at `rays` a frame."""
        size = max(1, CHUNK_RAYS // rays)
        return [slice(start, start + size) for start in range(0, self.frames, size)]

    @cached_property
    def hits(self) -> Hits:
        spans = self._parts_of_time(self.height * self.width)
        found = [cast(self.bodies.at(span), self.camera.at(span), self.height, self.width) for span in spans]
        return Hits(torch.cat([h.primitive for h in found]), torch.cat([h.depth for h in found]))

    @cached_property
    def rgb(self) -> Tensor:
        """Anti-aliased picture (four rays a pixel). returns: [F, H, W, 3] 0..1"""
        return self._supersampled[0]

    @cached_property
    def alpha(self) -> Tensor:
        """Share of each pixel that shows each puppet. returns: [P, F, H, W] 0..1"""
        return self._supersampled[1]

    @cached_property
    def _supersampled(self) -> tuple[Tensor, Tensor]:
        pictures, alphas = [], []
        for span in self._parts_of_time(4 * self.height * self.width):
            part = self.at(span)
            fine = _finer(part.camera)
            hits = cast(part.bodies, fine, 2 * self.height, 2 * self.width)
            owner = torch.where(hits.primitive >= 0, _looked_up(self.owner, hits.primitive), -1)
            people = range(len(self.spec.puppets))
            alphas.append(torch.stack([_halve((owner == p).float()[:, None])[:, 0] for p in people]) if people else torch.zeros(0, *part.size))
            pictures.append(_halve(_shade(part, hits, fine).movedim(-1, 1)).movedim(1, -1).clamp(0, 1))
            self.tick(min(span.stop, self.frames))
        return torch.cat(pictures), torch.cat(alphas, 1)

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @cached_property
    def depth(self) -> Tensor:
        """Depth along the view axis at pixel centres, metres; inf where nothing is hit. returns: [F, H, W]"""
        floor = self._floor_depth
        return torch.minimum(self.hits.depth, floor)

    @cached_property
    def parts(self) -> Tensor:
        """Part map at pixel centres: BACKGROUND, FLOOR, BALL, then FIRST_LIMB_PART + index in PARTS. returns: [F, H, W] int64"""
        limb_part = torch.tensor([FIRST_LIMB_PART + PARTS.index(limb.part) for limb in LIMBS])
        table = torch.cat([limb_part.repeat(len(self.spec.puppets)), torch.full((len(self.spec.balls),), BALL)])
        ground = torch.where(self._floor_depth.isfinite(), FLOOR, BACKGROUND)
        return torch.where(self.hits.primitive >= 0, _looked_up(table, self.hits.primitive), ground)

    @cached_property
    def owners(self) -> Tensor:
        """Puppet index at pixel centres, P + i for ball i, -1 elsewhere. returns: [F, H, W] int64"""
        return torch.where(self.hits.primitive >= 0, _looked_up(self.owner, self.hits.primitive), -1)

    @cached_property
    def joints_image(self) -> tuple[Tensor, Tensor]:
        """Joints in pixels and their depth. returns: [F, P, J, 2], [F, P, J]"""
        return self.camera.project(self.joints)

    @cached_property
    def _floor_depth(self) -> Tensor:
        return _floor_depth(self.spec, self.camera, directions(self.camera, self.height, self.width))

    def hit_points(self) -> Tensor:
        """World point behind each pixel centre; meaningless where depth is inf. returns: [F, H, W, 3]"""
        s = self.depth.clamp(max=FAR)[..., None]
        return self.camera.centre[:, None, None] + s * directions(self.camera, self.height, self.width)


def pose_scene(
    spec: SceneSpec, frames: int, height: int, width: int, fps: float = 16.0, tick: Callable[[int], None] = _no_tick
) -> World:
    """Put every puppet, ball and camera where it is at each frame. Nothing is rendered until it is asked for.

    raises: ValueError for a scene without frames or pixels
    """
    if frames < 1 or height < 8 or width < 8:
        raise ValueError(f"Puppet World needs at least 1 frame of 8x8 pixels, got {frames} of {height}x{width}.")
    t = torch.arange(frames) / fps
    rotation, origin, axis, radius, owner, joints = [], [], [], [], [], []
    for i, puppet in enumerate(spec.puppets):
        turned, placed = act(puppet.motion, t, puppet.start, puppet.height)
        on = limb_joints()
        limb_axis, limb_radius = limb_axes(puppet.height)
        rotation.append(turned[:, on])
        origin.append(placed[:, on])
        axis.append(limb_axis)
        radius.append(limb_radius)
        owner.append(torch.full((len(on),), i))
        joints.append(placed)
    for i, ball in enumerate(spec.balls):
        rotation.append(torch.eye(3).expand(frames, 1, 3, 3))
        origin.append(ball_path(ball, t)[:, None])
        axis.append(torch.zeros(1, 3))
        radius.append(torch.tensor([ball.radius]))
        owner.append(torch.tensor([len(spec.puppets) + i]))
    if not origin:
        rotation, origin, axis = [torch.zeros(frames, 0, 3, 3)], [torch.zeros(frames, 0, 3)], [torch.zeros(0, 3)]
        radius, owner = [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
    bodies = Bodies(torch.cat(rotation, 1), torch.cat(origin, 1), torch.cat(axis), torch.cat(radius))
    stacked = torch.stack(joints, 1) if joints else torch.zeros(frames, 0, 24, 3)
    return World(spec, fps, height, width, track(spec.camera, t, height, width), bodies, stacked, torch.cat(owner), tick)


def impacts(ball: Ball, seconds: float) -> list[tuple[float, float]]:
    """When the ball meets the floor, and how fast. returns: [(seconds, m/s), ...]"""
    speed = (2 * GRAVITY * max(ball.drop - ball.radius, 1e-3)) ** 0.5
    time, found = speed / GRAVITY, []
    while time < seconds and speed > 0.2:
        found.append((time, speed))
        speed *= ball.bounce
        time += 2 * speed / GRAVITY
    return found


def ball_path(ball: Ball, t: Tensor) -> Tensor:
    """Centre of a bouncing ball: parabolas between impacts. t: [F] seconds -> [F, 3] metres"""
    low = ball.radius
    height = ball.drop - 0.5 * GRAVITY * t**2
    for time, speed in impacts(ball, float(t[-1]) + 1e-6 if len(t) else 0.0):
        since = t - time
        up = low + speed * ball.bounce * since - 0.5 * GRAVITY * since**2
        height = torch.where(since >= 0, up, height)
    x = ball.start[0] + ball.velocity[0] * t
    z = ball.start[1] + ball.velocity[1] * t
    return torch.stack([x, height.clamp(min=low), z], -1)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] with -1 read as anything. A scene without primitives has an empty table."""
    return table[index.clamp(min=0)] if len(table) else torch.zeros_like(index)


def _finer(camera: CameraTrack) -> CameraTrack:
    K = camera.K.clone()
    K[:, :2] *= 2
    return CameraTrack(K, camera.w2c)


def _halve(x: Tensor) -> Tensor:
    """Mean of each 2x2. x: [F, C, 2H, 2W] -> [F, C, H, W]"""
    return torch.nn.functional.avg_pool2d(x, 2)


def _floor_depth(spec: SceneSpec, camera: CameraTrack, d: Tensor) -> Tensor:
    """Depth of the floor behind each pixel, inf above the horizon or where the scene has a plate. returns: [F, H, W]"""
    if spec.ground != "floor":
        return torch.full(d.shape[:3], float("inf"))
    s = -camera.centre[:, 1, None, None] / d[..., 1].clamp(max=-1e-6)
    return torch.where((d[..., 1] < -1e-6) & (s < FAR), s, float("inf"))


def _shade(world: World, hits: Hits, camera: CameraTrack) -> Tensor:
    """returns: [F, H, W, 3]"""
    F, H, W = hits.primitive.shape
    picture = _backdrop(world.spec, world, camera, H, W)
    seen = hits.primitive >= 0
    if seen.any():
        frame, y, x = seen.nonzero(as_tuple=True)
        d = _rays(camera, frame, x, y)
        point = camera.centre[frame] + hits.depth[seen][:, None] * d
        picture[seen] = _body_colour(world, frame, hits.primitive[seen], point)
    return picture


def _rays(camera: CameraTrack, frame: Tensor, x: Tensor, y: Tensor) -> Tensor:
    K = camera.K[frame]
    cam = torch.stack([(x + 0.5 - K[:, 0, 2]) / K[:, 0, 0], (y + 0.5 - K[:, 1, 2]) / K[:, 1, 1], torch.ones(len(x))], -1)
    return (cam[:, None] @ camera.w2c[frame, :3, :3])[:, 0]


def _backdrop(spec: SceneSpec, world: World, camera: CameraTrack, H: int, W: int) -> Tensor:
    if spec.ground != "floor":
        shade = torch.linspace(1.03, 0.95, H)[None, :, None, None]
        return (torch.tensor(spec.plate) * shade).expand(len(camera.K), H, W, 3).clone()
    d = directions(camera, H, W)
    s = _floor_depth(spec, camera, d)
    up = torch.nn.functional.normalize(d, dim=-1)[..., 1:2].clamp(0, 1)
    sky = torch.tensor([0.86, 0.89, 0.92]) - up * torch.tensor([0.22, 0.17, 0.08])
    ground = camera.centre[:, None, None] + s.clamp(max=FAR)[..., None] * d
    parity = ((ground[..., 0] / 0.8).floor() + (ground[..., 2] / 0.8).floor()) % 2
    contrast = (-s.clamp(max=FAR) / 9).exp()  # tiles melt into one grey far away, before they alias
    tone = 0.60 + 0.11 * contrast * (2 * parity - 1)
    for root in world.joints[:, :, 0].unbind(1):
        apart = (ground[..., (0, 2)] - root[:, None, None, (0, 2)]).square().sum(-1)
        tone = tone * (1 - 0.28 * (-apart / 0.07).exp())
    return torch.where(s[..., None].isfinite(), tone[..., None] * torch.tensor([1.0, 0.995, 0.98]), sky)


def _body_colour(world: World, frame: Tensor, primitive: Tensor, point: Tensor) -> Tensor:
    """Colour at points on primitives. frame, primitive: [M]    point: [M, 3] -> [M, 3]"""
    bodies, spec = world.bodies, world.spec
    first, second, texture, rest = _wardrobe(spec)
    local = (bodies.rotation[frame, primitive].transpose(1, 2) @ (point - bodies.origin[frame, primitive])[..., None])[..., 0]
    axis = bodies.axis[primitive]
    share = ((local * axis).sum(-1) / axis.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    normal_local = torch.nn.functional.normalize(local - share[:, None] * axis, dim=-1)
    normal = (bodies.rotation[frame, primitive] @ normal_local[..., None])[..., 0]
    other = _texture(local + rest[primitive], local, texture[primitive])
    colour = torch.where(other[:, None], second[primitive], first[primitive])
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
    return colour * (0.62 + 0.38 * (normal @ light).clamp(min=0) + 0.06 * normal[:, 1])[:, None]


def _texture(rest: Tensor, local: Tensor, kind: Tensor) -> Tensor:
    """Where a garment shows its second colour. rest: [M, 3] rest-pose metres    kind: [M] index in _TEXTURES -> [M] bool"""
    stripes = (rest[:, 1] / 0.15) % 1 < 0.45
    checks = (rest / 0.13).floor().sum(-1) % 2 < 0.5
    dots = ((rest / 0.15) % 1 - 0.5).norm(dim=-1) < 0.38
    hair = (local[:, 1] > 0.10) | ((local[:, 2] < -0.02) & (local[:, 1] > -0.06))
    plain = torch.zeros_like(stripes)
    return torch.stack([plain, stripes, checks, dots, hair]).gather(0, kind[None])[0]


def _wardrobe(spec: SceneSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours, texture and rest position of each primitive. returns: [C, 3], [C, 3], [C], [C, 3]"""
    first, second, texture, rest = [], [], [], []
    for puppet in spec.puppets:
        worn = puppet.garments()
        first += [worn[limb.wear].colour for limb in LIMBS]
        second += [worn[limb.wear].second for limb in LIMBS]
        texture += [_TEXTURES.index(worn[limb.wear].pattern) for limb in LIMBS]
        rest.append(rest_joints(puppet.height)[limb_joints()])
    for ball in spec.balls:
        first.append(ball.colour)
        second.append((0.95, 0.95, 0.95))
        texture.append(_TEXTURES.index("stripes"))
        rest.append(torch.zeros(1, 3))
    return torch.tensor(first), torch.tensor(second), torch.tensor(texture), torch.cat(rest)
