"""What a camera sees of bodies: at each pixel who it is, which part, how far away, and which way the skin faces.

P people   T frames   N points   C primitives of a frame   H W picture. Bodies with joints are cast as capsules, exact;
bodies without as balls behind their points, as large as the points are apart. What is nearer hides what is farther.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..puppet.body import INDEX, LIMBS, PARTS
from ..puppet.render import cast, directions
from .body import NO_PART, BodyTrack
from .camera import CameraPath
from .skeleton import clothe

NOBODY = -1
CHUNK_RAYS = 1 << 21  # as Puppet World renders: about 0.4 GB of candidates at a time
# Radius of a ball by the distance to the fourth nearest point. 512 points on the puppets of three scenes: 0.6 missed
# 6 % of the silhouette and added 1 %, 0.7 missed 4 % and added 5 %, 0.8 missed 3 % and added 12 %.
COVER = 0.7
ASKED = 1024  # points whose neighbours are looked for at a time
AWAY = 10.0  # metres behind the camera, where what is not known is put: nothing there is drawn


@dataclass(frozen=True)
class Shapes:
    """Capsules (or balls, where both ends are one) as the ray caster takes them.

    origin, tip: [T, C, 3] metres    radius: [C]    person, part: [C] int64    known: [T, C] bool
    normal: [T, C, 3] of the skin that a ball stands for, or None where the shapes are the skin
    """

    origin: Tensor
    tip: Tensor
    radius: Tensor
    person: Tensor
    part: Tensor
    known: Tensor
    normal: Tensor | None = None

    def at(self, frames: slice) -> Shapes:
        picked = {name: getattr(self, name)[frames] for name in ("origin", "tip", "known")}
        return replace(self, **picked, normal=None if self.normal is None else self.normal[frames])

    def facing(self, faces: Tensor) -> Shapes:
        """Without those that are turned away. faces: [P, T, N] bool"""
        return replace(self, known=self.known & _by_frame(faces))

    def before(self, camera: CameraPath) -> Shapes:
        """The same with what is not known out of sight."""
        hidden = camera.centre - AWAY * camera.w2c[:, 2, :3]
        ends = {name: torch.where(self.known[..., None], getattr(self, name), hidden[:, None])
                for name in ("origin", "tip")}  # fmt: skip
        return replace(self, **ends)


@dataclass(frozen=True)
class Seen:
    """person, part: [T, H, W] int64, NOBODY where nobody is; part may be NO_PART    depth: [T, H, W] metres, inf
    normal: [T, H, W, 3] in camera axes (x right, y down, z forward), 0 where nobody is"""

    person: Tensor
    part: Tensor
    depth: Tensor
    normal: Tensor


def see(track: BodyTrack, camera: CameraPath, height: int, width: int,
        tick: Callable[[int], None] = lambda done: None) -> Iterator[Seen]:  # fmt: skip
    """Some frames at a time, in order. tick: called with the frames done so far."""
    shapes, camera = shapes_of(track, camera), camera.covering(height, width)
    step = max(1, CHUNK_RAYS // (height * width))
    for start in range(0, track.frames, step):
        part = slice(start, min(start + step, track.frames))
        yield look(shapes.at(part), camera.at(part), height, width)
        tick(part.stop)


def look(shapes: Shapes, camera: CameraPath, height: int, width: int) -> Seen:
    """What is seen of shapes of known and unknown places."""
    drawn = shapes.before(camera)
    hits = cast(drawn, camera, height, width)
    there, which = hits.primitive >= 0, hits.primitive.clamp(min=0)
    ray = directions(camera, height, width)
    place = camera.centre[:, None, None] + torch.where(there, hits.depth, 1.0)[..., None] * ray
    frame = torch.arange(len(which))[:, None, None]
    out = _outward(drawn, frame, which, place)
    if drawn.normal is not None:
        # Mean error against capsules, 512 and 2048 points: the ball's own 22 and 27 degrees, the point's 41 and 12, the
        # middle of both 24 and 12.
        out = normalize(out + drawn.normal[frame, which], dim=-1)
    normal = out @ camera.w2c[:, None, :3, :3].transpose(-1, -2)
    return Seen(torch.where(there, shapes.person[which], NOBODY), torch.where(there, shapes.part[which], NOBODY),
                hits.depth, torch.where(there[..., None], normal, 0.0))  # fmt: skip


def _outward(shapes: Shapes, frame: Tensor, which: Tensor, place: Tensor) -> Tensor:
    """Away from the nearest point of a capsule's axis. frame, which: of each pixel    place: [T, H, W, 3]"""
    start, along = shapes.origin[frame, which], (shapes.tip - shapes.origin)[frame, which]
    share = ((place - start) * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-12)
    return normalize(place - start - share.clamp(0, 1)[..., None] * along, dim=-1)


def shapes_of(track: BodyTrack, camera: CameraPath) -> Shapes:
    """The bodies as something that rays can meet."""
    return _capsules(track) if track.joints is not None else balls(track, camera, spacing(track))


def limbs_known(track: BodyTrack) -> Tensor:
    """Whether a limb is to be drawn: a point of its part is known, or, where the part has no points, any of the person.

    returns: [P, T, L] bool
    """
    anyone = track.known.any(-1)
    by_part = [track.known[..., track.part == p].any(-1) if (track.part == p).any() else anyone
               for p in range(len(PARTS))]  # fmt: skip
    return torch.stack(by_part, -1)[..., [PARTS.index(limb.part) for limb in LIMBS]]


def _capsules(track: BodyTrack) -> Shapes:
    body, people = clothe(track.joints), track.people
    known = limbs_known(track)
    part = torch.tensor([PARTS.index(limb.part) for limb in LIMBS])
    person = torch.arange(people).repeat_interleave(len(LIMBS))
    return Shapes(_by_frame(body.start), _by_frame(body.tip), body.radius.flatten(), person, part.repeat(people),
                  _by_frame(known))  # fmt: skip


def balls(track: BodyTrack, camera: CameraPath, radius: Tensor, behind: bool = True) -> Shapes:
    """A ball for each point. radius: [N] metres; behind: the skin goes through the point, not through the middle"""
    points = torch.where(track.known[..., None], track.points, 0.0)
    if behind:
        inward = -track.normals if track.normals is not None else normalize(points - camera.centre[:, None], dim=-1)
        points = points + radius[:, None] * inward
    count = points.shape[2]
    part = torch.where(track.part < NO_PART, track.part, NO_PART)
    return Shapes(_by_frame(points), _by_frame(points), radius.repeat(track.people),
                  torch.arange(track.people).repeat_interleave(count), part.repeat(track.people),
                  _by_frame(track.known), None if track.normals is None else _by_frame(track.normals))  # fmt: skip


def spacing(track: BodyTrack) -> Tensor:
    """Radius that closes the gap to the neighbours, in the frame where most points are known. returns: [N] metres"""
    seen = track.known.sum(-1).flatten()
    person, frame = divmod(int(seen.argmax()), track.frames)
    points, known = track.points[person, frame], track.known[person, frame]
    heard = points[known]
    if len(heard) < 5:
        return torch.full((len(points),), 0.05)
    near = torch.cat([torch.cdist(some, heard).kthvalue(5, dim=1).values for some in heard.split(ASKED)])
    radius = torch.full((len(points),), float(near.median()))
    radius[known] = near
    return COVER * radius


def joints_known(track: BodyTrack) -> Tensor:
    """Whether one of the limbs at a joint is to be drawn. returns: [P, T, 24] bool"""
    limbs, known = limbs_known(track), torch.zeros(track.people, track.frames, len(INDEX), dtype=torch.bool)
    for i, limb in enumerate(LIMBS):
        for name in (limb.joint, limb.tip):
            if isinstance(name, str):
                known[..., INDEX[name]] |= limbs[..., i]
    return known


def _by_frame(x: Tensor) -> Tensor:
    """[P, T, C, ...] -> [T, P * C, ...]"""
    return x.transpose(0, 1).flatten(1, 2).contiguous()
