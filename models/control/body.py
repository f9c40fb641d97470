"""Bodies as points on their skin, followed over time: what interspatial attention and the previews are given.

P people   T pixel frames   N points a person   J joints (24, SMPL's order)

Point i is the same place on the body in all frames and clips. World metres, y up; see `camera` for the other frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..puppet.body import PARTS

NO_PART = len(PARTS)  # of points whose body part is not known


@dataclass(frozen=True)
class BodyTrack:
    """points: [P, T, N, 3] world metres    known: [P, T, N] bool, False where a point is not to be used
    part: [N] int64, index in PARTS or NO_PART    fps: frames per second
    normals: [P, T, N, 3] unit vectors out of the skin, or None    joints: [P, T, 24, 3], or None

    raises: ValueError for tensors that do not fit together, and for NaN or infinity in a point that is known
    """

    points: Tensor
    known: Tensor
    part: Tensor
    fps: float
    normals: Tensor | None = None
    joints: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if self.points.ndim != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"Body track: points of shape {list(shape)}, accepted: [people, frames, points, 3].")
        for name, found, wanted in (("known", self.known, shape[:3]), ("part", self.part, shape[2:3]),
                                    ("normals", self.normals, shape), ("joints", self.joints, (*shape[:2], 24, 3))):
            if found is not None and tuple(found.shape) != tuple(wanted):
                raise ValueError(f"Body track: {name} of shape {list(found.shape)} beside points of shape "
                                 f"{list(shape)}, accepted: {list(wanted)}.")  # fmt: skip
        if not self.fps > 0:
            raise ValueError(f"Body track: {self.fps} frames per second, accepted: more than 0.")
        bad = ~self.points.isfinite().all(-1) & self.known
        if bad.any():
            person, frame, point = (int(i) for i in bad.nonzero()[0])
            raise ValueError(f"Body track: person {person + 1} has a point {point} in frame {frame} that is not a "
                             "number. Mark it as not known, or repair the track.")  # fmt: skip

    @property
    def people(self) -> int:
        return self.points.shape[0]

    @property
    def frames(self) -> int:
        return self.points.shape[1]

    def at(self, frames: slice | Tensor) -> BodyTrack:
        """The same bodies over chosen frames, in the order given."""
        pick = {name: getattr(self, name)[:, frames] for name in ("points", "known")}
        pick |= {name: None if x is None else x[:, frames] for name, x in
                 (("normals", self.normals), ("joints", self.joints))}  # fmt: skip
        return replace(self, **pick)

    def fitted(self, frames: int, fps: float, how: str = "stretch") -> BodyTrack:
        """The track brought to the length and rate of a clip.

        how: "stretch" spreads the whole track over the clip, "trim" keeps its speed and cuts; a track that is too
        short then rests in its last frame
        """
        at = torch.arange(frames, dtype=torch.float64)
        at = at * (self.frames - 1) / max(frames - 1, 1) if how == "stretch" else at * self.fps / fps
        at = at.clamp(max=self.frames - 1)
        low = at.floor().long()
        high, share = (low + 1).clamp(max=self.frames - 1), (at - low).to(self.points)[:, None, None]

        def mixed(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:, low].lerp(x[:, high], share)

        nearest = (at + 0.5).floor().long().clamp(max=self.frames - 1)
        # where only one of the two neighbours is known a mean would be wrong: its frame is taken whole
        both = self.known[:, low] & self.known[:, high]
        points = torch.where(both[..., None], mixed(self.points), self.points[:, nearest])
        normals = mixed(self.normals)
        normals = None if normals is None else torch.nn.functional.normalize(normals, dim=-1)
        return replace(self, points=points, known=self.known[:, nearest], normals=normals,
                       joints=mixed(self.joints), fps=float(fps))  # fmt: skip


def together(tracks: list[BodyTrack]) -> BodyTrack:
    """Several people in one track. They need the same points, length and rate.

    raises: ValueError when they differ
    """
    first = tracks[0]
    for i, track in enumerate(tracks[1:], 2):
        if track.points.shape[1:] != first.points.shape[1:] or not torch.equal(track.part, first.part):
            raise ValueError(f"Body track {i} has {track.frames} frames of {track.points.shape[2]} points, the first "
                             f"one {first.frames} of {first.points.shape[2]}; they need the same points and "
                             "length. Fit them to one length, and take them from the same kind of source.")  # fmt: skip

    def joined(name: str) -> Tensor | None:
        found = [getattr(track, name) for track in tracks]
        return None if any(x is None for x in found) else torch.cat(found)

    return replace(first, **{name: joined(name) for name in ("points", "known", "normals", "joints")})
