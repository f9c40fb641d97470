"""Puppet World rendered: pictures, and the truth behind them.

F frames   P puppets   C primitives. One call poses everything; rays are cast and shaded when a picture is first asked
for. What else one wants to know (flow, surface points, sound) is derived from the same arrays, in the files beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .ball import ball_path
from .body import JOINTS, LIMBS, PARTS, limb_axes, limb_joints
from .camera import CameraTrack, track
from .motion import act
from .render import FAR, Bodies, Hits, cast, directions
from .scene import SceneSpec
from .shade import floor_depth, shade

BACKGROUND, FLOOR, BALL = 0, 1, 2  # part map codes; limbs follow in the order of PARTS
FIRST_LIMB_PART = 3
SMALLEST = 8  # pixels a side
CHUNK_RAYS = 1 << 21  # about 0.4 GB of candidates and shading at a time


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

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows, columns."""
        return self.frames, self.height, self.width

    def at(self, frames: slice) -> World:
        """The same scene over fewer frames."""
        return replace(self, camera=self.camera.at(frames), bodies=self.bodies.at(frames), joints=self.joints[frames])

    def spans(self, rays: int) -> list[slice]:
        """Runs of frames that cast at most CHUNK_RAYS rays at `rays` a frame, one frame at least."""
        size = max(1, CHUNK_RAYS // rays)
        return [slice(start, min(start + size, self.frames)) for start in range(0, self.frames, size)]

    @cached_property
    def hits(self) -> Hits:
        """What the centre of each pixel sees of the bodies."""
        spans = self.spans(self.height * self.width)
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
        for span in self.spans(4 * self.height * self.width):
            part = self.at(span)
            fine = _finer(part.camera)
            hits = cast(part.bodies, fine, 2 * self.height, 2 * self.width)
            owner = torch.where(hits.primitive >= 0, _looked_up(self.owner, hits.primitive), -1)
            alpha = torch.zeros(len(self.spec.puppets), *part.size)
            for p in range(len(alpha)):
                alpha[p] = _halve((owner == p).float()[:, None])[:, 0]
            alphas.append(alpha)
            colours = shade(self.spec, part.bodies, part.joints[:, :, 0], fine, hits)
            pictures.append(_halve(colours.movedim(-1, 1)).movedim(1, -1).clamp(0, 1))
            self.tick(span.stop)
        return torch.cat(pictures), torch.cat(alphas, 1)

    @cached_property
    def depth(self) -> Tensor:
        """Depth along the view axis of what the picture shows at pixel centres, metres; inf where nothing is hit.

        Where a heel sinks into the floor by a centimetre the picture shows the heel, and so does the depth.
        returns: [F, H, W]
        """
        return torch.where(self.hits.primitive >= 0, self.hits.depth, self._floor_depth)

    @cached_property
    def parts(self) -> Tensor:
        """Part map at pixel centres: BACKGROUND, FLOOR, BALL, or FIRST_LIMB_PART + index in PARTS.

        returns: [F, H, W] int64
        """
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
        d = directions(self.camera, self.height, self.width)
        return floor_depth(self.spec, self.camera.centre[:, None, None], d)

    def hit_points(self) -> Tensor:
        """World point behind each pixel centre; meaningless where depth is inf. returns: [F, H, W, 3]"""
        s = self.depth.masked_fill(self.depth.isinf(), FAR)[..., None]
        return self.camera.centre[:, None, None] + s * directions(self.camera, self.height, self.width)


def pose_scene(
    spec: SceneSpec, frames: int, height: int, width: int, fps: float = 16.0, tick: Callable[[int], None] = _no_tick
) -> World:
    """Put every puppet, ball and camera where it is at each frame. Nothing is rendered until it is asked for.

    raises: ValueError for a scene without frames, pixels or time
    """
    if frames < 1 or height < SMALLEST or width < SMALLEST:
        raise ValueError(f"Puppet World needs at least 1 frame of {SMALLEST}x{SMALLEST} pixels, "
                         f"got {frames} of {height}x{width}.")  # fmt: skip
    if not fps > 0:
        raise ValueError(f"Puppet World needs more than 0 frames per second, got {fps}.")
    t = torch.arange(frames) / fps
    bodies, joints = _posed_puppets(spec, t)
    for ball in spec.balls:
        still = torch.eye(3).expand(frames, 1, 3, 3)
        bodies.append(Bodies(still, ball_path(ball, t)[:, None], torch.zeros(1, 3), torch.tensor([ball.radius])))
    owner = [i for i in range(len(spec.puppets)) for _ in LIMBS]
    owner += [len(spec.puppets) + i for i in range(len(spec.balls))]
    return World(spec, fps, height, width, track(spec.camera, t, height, width), _together(bodies, frames), joints,
                 torch.tensor(owner, dtype=torch.int64), tick)  # fmt: skip


def _posed_puppets(spec: SceneSpec, t: Tensor) -> tuple[list[Bodies], Tensor]:
    """The limbs of each puppet, and all joints. t: [F] seconds    returns: Bodies a puppet, [F, P, J, 3]"""
    bodies, joints = [], torch.zeros(len(t), len(spec.puppets), len(JOINTS), 3)
    on = limb_joints()
    for i, puppet in enumerate(spec.puppets):
        rotation, joints[:, i] = act(puppet.motion, t, puppet.start, puppet.height)
        bodies.append(Bodies(rotation[:, on], joints[:, i, on], *limb_axes(puppet.height)))
    return bodies, joints


def _together(bodies: list[Bodies], frames: int) -> Bodies:
    """One list of primitives; empty for a scene with neither puppets nor balls."""
    nobody = Bodies(torch.zeros(frames, 0, 3, 3), torch.zeros(frames, 0, 3), torch.zeros(0, 3), torch.zeros(0))
    every = [nobody, *bodies]
    return Bodies(torch.cat([b.rotation for b in every], 1), torch.cat([b.origin for b in every], 1),
                  torch.cat([b.axis for b in every]), torch.cat([b.radius for b in every]))  # fmt: skip


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] with -1 read as anything. A scene without primitives has an empty table."""
    return table[index.clamp(min=0)] if len(table) else torch.zeros_like(index)


def _finer(camera: CameraTrack) -> CameraTrack:
    """The same view with twice the rows and columns."""
    K = camera.K.clone()
    K[:, :2] *= 2
    return CameraTrack(K, camera.w2c)


def _halve(x: Tensor) -> Tensor:
    """Mean of each 2x2. x: [F, C, 2H, 2W] -> [F, C, H, W]"""
    return torch.nn.functional.avg_pool2d(x, 2)
