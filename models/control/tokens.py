"""A body seen by a camera, as interspatial attention takes it: places and contents of its points per latent frame.

F latent frames   M points of all people together   S sub-frames   C channels of an identity feature   B batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .body import BodyTrack
from .camera import CameraPath
from .projection import DepthRange, ndc
from .time_folding import latent_frames, sub_frames

PEOPLE = 8  # slots of the table of people; the ninth person shares the slot of the first


@dataclass(frozen=True)
class BodyTokens:
    """place: [F, M, 3] NDC at the latent frame's last pixel frame    usable: [F, M] bool
    content: [F, M, S, 3] world metres from the first person's middle in the first frame
    person: [M] int64 below PEOPLE    part: [M] int64, index in PARTS or NO_PART
    identity: [M, C + 1], what the reference view shows there and whether it shows it; None without a reference
    """

    place: Tensor
    usable: Tensor
    content: Tensor
    person: Tensor
    part: Tensor
    identity: Tensor | None = None

    @property
    def frames(self) -> int:
        return len(self.place)

    def window(self, frames: Sequence[int]) -> BodyTokens:
        """The tokens of some latent frames, as a context window takes them."""
        index = torch.as_tensor(list(frames), device=self.place.device)
        return replace(self, place=self.place[index], usable=self.usable[index], content=self.content[index])

    def to(self, device, dtype=None) -> BodyTokens:
        """Places and contents stay in float32: half precision would move them by a tenth of a token."""
        moved = {name: getattr(self, name).to(device) for name in ("place", "usable", "content", "person", "part")}
        return replace(self, **moved, identity=None if self.identity is None else self.identity.to(device, dtype))


def body_tokens(
    body: BodyTrack, camera: CameraPath, stride: int, depth: str = "linear", planes: DepthRange | None = None
) -> BodyTokens:
    """What a model with `stride` pixel frames a latent frame is told of a body.

    raises: ValueError when body and camera differ in length
    """
    if body.frames != camera.frames:
        raise ValueError(f"The body has {body.frames} frames and the camera {camera.frames}; they need the same "
                         "number. Stretch or trim one of them.")  # fmt: skip
    P, T, N, _ = body.points.shape
    place, usable = ndc(body.points, body.known, camera, depth, planes)
    frames = sub_frames(latent_frames(T, stride), stride)
    last = frames[:, -1]
    content = torch.where(body.known[..., None], body.points, 0.0) - middle(body)
    return BodyTokens(
        place=place[:, last].transpose(0, 1).flatten(1, 2),
        usable=usable[:, last].transpose(0, 1).flatten(1, 2),
        content=content[:, frames].permute(1, 0, 3, 2, 4).flatten(1, 2),
        person=(torch.arange(P) % PEOPLE).repeat_interleave(N),
        part=body.part.repeat(P),
    )


def middle(body: BodyTrack) -> Tensor:
    """Mean of the known points of the first person in the first frame that has any. returns: [3]"""
    known = body.known[0].any(-1)
    if not known.any():
        return torch.zeros(3)
    first = int(known.int().argmax())
    return body.points[0, first][body.known[0, first]].mean(0)


def identity_features(reference: Tensor, body: BodyTrack, camera: CameraPath, seen: Tensor | None = None) -> Tensor:
    """What a reference picture shows at each point, and whether it shows it.

    reference: [C, h, w] latent or picture    body, camera: of the reference, one frame
    seen: [P, N] bool, `front` if None
    returns: [P * N, C + 1], zeros where a point is hidden or off the picture
    """
    place, usable = ndc(body.points, body.known, camera)
    seen = front(body, camera)[:, 0] if seen is None else seen
    seen = seen & usable[:, 0] & (place[:, 0, :, :2].abs() <= 1).all(-1)
    found = grid_sample(reference[None].float(), place[None, :, 0, :, :2], align_corners=False)[0]  # C P N
    kept = torch.cat([found.permute(1, 2, 0), torch.ones_like(seen, dtype=torch.float32)[..., None]], -1)
    return (kept * seen[..., None]).flatten(0, 1)


def front(body: BodyTrack, camera: CameraPath, cells: int = 32, thick: float = 0.06) -> Tensor:
    """Which points the camera sees: turned towards it, and none of the other points clearly before it.

    A point is hidden when another one in the same or a neighbouring cell of a cells x cells raster is nearer by more
    than `thick` metres, a limb's radius. Without normals the raster alone decides.
    returns: [P, T, N] bool
    """
    place, usable = ndc(body.points, body.known, camera)
    depth = camera.view(torch.where(body.known[..., None], body.points, 0.0))[..., 2]
    T = body.frames
    cell = ((place[..., :2] + 1) / 2 * cells).floor().long()
    inside = usable & ((cell >= 0) & (cell < cells)).all(-1)
    cell = cell.clamp(0, cells - 1)
    index = (torch.arange(T)[None, :, None] * cells + cell[..., 1]) * cells + cell[..., 0]
    nearest = torch.full((T * cells * cells,), float("inf"))
    nearest.scatter_reduce_(0, index[inside], depth[inside], "amin")
    around = -torch.nn.functional.max_pool2d(-nearest.view(T, 1, cells, cells), 3, 1, 1)
    seen = inside & (depth <= around.flatten()[index] + thick)
    if body.normals is not None:
        seen &= ((camera.centre[None, :, None] - body.points) * body.normals).sum(-1) > 0
    return seen
