"""Bodies drawn as pictures: what video models with pose, depth or part control take today, and what people look at.

P people   T frames   H W picture. Pictures are [T, H, W, 3] 0..1, black where nobody is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..puppet.body import PARTS
from ..puppet.views import PART_COLOURS
from .body import BodyTrack
from .camera import CameraPath
from .camera_moves import lengthened
from .key_points import draw, key_points
from .projection import NEAREST
from .seen import CHUNK_RAYS, NOBODY, Seen, balls, look, see

KINDS = {
    "overlay": "points over images", "skeleton": "OpenPose colours", "depth": "near is white",
    "normal": "red right, green up, blue to the viewer", "parts": "a colour a body part",
    "people": "a colour a person", "people and parts": "a colour a person, shades for parts",
}  # fmt: skip
# SCAIL-2's order in ComfyUI; pure, as its masks are told apart by channels above 225 of 255.
PALETTE = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0))
UNKNOWN_PART = (0.8, 0.8, 0.8)
FARTHEST = 0.2  # grey of the farthest point of a clip, so that it is told from the background
DARKEST = 0.3  # shade of the first part on the map of people and parts
DOT = 0.012  # metres, radius of a point on the overlay; at least DOT_PIXELS of the picture
DOT_PIXELS = 1.2
Tick = Callable[[int], None]


def body_map(kind: str, track: BodyTrack, camera: CameraPath, height: int, width: int, images: Tensor | None = None,
             tick: Tick = lambda done: None) -> Tensor:  # fmt: skip
    """The clip of one kind of map. Points behind the camera and people out of the picture are not drawn.

    kind: of KINDS    camera: as long as the track, or one frame that is held; it is scaled to cover the picture
    images: [1 or T, H', W', 3] under the overlay and the skeleton; black if None
    tick: called with the frames done so far    returns: [T, H, W, 3]
    raises: ValueError for an unknown kind, other lengths, or a skeleton without joints
    """
    if kind not in KINDS:
        raise ValueError(f"the map {kind!r} is not known. Accepted: {', '.join(KINDS)}.")
    camera = _held(camera, track.frames)
    if kind in ("overlay", "skeleton"):
        picture = background(images, track.frames, height, width)
        paint = _dots if kind == "overlay" else _sticks
        paint(picture, track, camera.covering(height, width), tick)
        return picture
    paint = _PAINT[kind]
    planes = _planes(track, camera)
    return torch.cat([paint(seen, planes) for seen in see(track, camera, height, width, tick)])


def background(images: Tensor | None, frames: int, height: int, width: int) -> Tensor:
    """A picture to draw on. raises: ValueError for fewer images than frames, but for one"""
    if images is None:
        return torch.zeros(frames, height, width, 3)
    if len(images) not in (1, frames):
        raise ValueError(f"{len(images)} images under a body of {frames} frames. Accepted: one image, or as many as "
                         "the body has frames; Body from File can stretch or trim it.")  # fmt: skip
    images = images[..., :3].detach().cpu().float().movedim(-1, 1)
    if images.shape[2:] != (height, width):
        images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.movedim(1, -1).expand(frames, -1, -1, -1).clamp(0, 1).contiguous().clone()


def _held(camera: CameraPath, frames: int) -> CameraPath:
    if camera.frames not in (1, frames):
        raise ValueError(f"a camera of {camera.frames} frames before a body of {frames}. Accepted: one frame, or as "
                         "many as the body has; Camera Path makes it so when the body is connected.")  # fmt: skip
    return lengthened(camera, frames)


def _planes(track: BodyTrack, camera: CameraPath) -> tuple[float, float]:
    """Depth of the nearest and the farthest point of the clip, metres."""
    depth = camera.view(torch.where(track.known[..., None], track.points, 0.0))[..., 2]
    kept = depth[track.known & (depth > NEAREST)]
    return (float(kept.min()), float(kept.max())) if kept.numel() else (1.0, 2.0)


def _depth(seen: Seen, planes: tuple[float, float]) -> Tensor:
    """Inverse depth, as depth estimators give it, spread over the clip's own range."""
    near, far = planes
    share = (1 / seen.depth - 1 / far) / max(1 / near - 1 / far, 1e-6)
    grey = FARTHEST + (1 - FARTHEST) * share.clamp(0, 1)
    return torch.where(seen.depth.isfinite(), grey, 0.0)[..., None].repeat(1, 1, 1, 3)


def _normal(seen: Seen, planes: tuple[float, float]) -> Tensor:
    there = (seen.person != NOBODY)[..., None]
    return torch.where(there, 0.5 + 0.5 * seen.normal * torch.tensor([1.0, -1.0, -1.0]), 0.0)


def _parts(seen: Seen, planes: tuple[float, float]) -> Tensor:
    return torch.tensor([*PART_COLOURS, UNKNOWN_PART, (0.0, 0.0, 0.0)])[seen.part]  # NOBODY is the last one


def _people(seen: Seen, planes: tuple[float, float]) -> Tensor:
    colours = torch.tensor([*PALETTE, (0.0, 0.0, 0.0)])
    return colours[torch.where(seen.person == NOBODY, len(PALETTE), seen.person % len(PALETTE))]


def _people_and_parts(seen: Seen, planes: tuple[float, float]) -> Tensor:
    shade = DARKEST + (1 - DARKEST) * (torch.arange(len(PARTS) + 1) * 0.618034 % 1)  # neighbours far apart
    return _people(seen, planes) * shade[seen.part.clamp(min=0)][..., None]


_PAINT = {"depth": _depth, "normal": _normal, "parts": _parts, "people": _people, "people and parts": _people_and_parts}


def _sticks(picture: Tensor, track: BodyTrack, camera: CameraPath, tick: Tick) -> None:
    pixel, drawn = key_points(track, camera)
    for t in range(track.frames):
        draw(pixel[:, t], drawn[:, t], picture[t])
        tick(t + 1)


def _dots(picture: Tensor, track: BodyTrack, camera: CameraPath, tick: Tick) -> None:
    """Points that face the camera, nearer ones over farther ones; parts of one person, else people, by colour."""
    near, far = _planes(track, camera)
    radius = max(DOT, DOT_PIXELS * (near + far) / 2 / float(camera.K[:, 0, 0].mean()))
    shapes = balls(track, camera, torch.full((track.points.shape[2],), radius), behind=False)
    if track.normals is not None:
        faces = ((camera.centre[:, None] - track.points) * track.normals).sum(-1) > 0
        shapes = shapes.facing(faces)
    paint = _parts if track.people == 1 else _people
    step = max(1, CHUNK_RAYS // (camera.height * camera.width))
    for start in range(0, track.frames, step):
        some = slice(start, start + step)
        seen = look(shapes.at(some), camera.at(some), camera.height, camera.width)
        there = (seen.person != NOBODY)[..., None]
        picture[some] = torch.where(there, paint(seen, (near, far)), picture[some])
        tick(min(start + step, track.frames))
