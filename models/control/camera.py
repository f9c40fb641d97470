"""Cameras of a clip, one per pixel frame.

T pixel frames. OpenCV's convention everywhere: camera x right, y down, z forward; K in pixels, with the corner of the
picture at 0 and the centre of its first pixel at 0.5; w2c maps world metres to camera metres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class CameraPath:
    """K: [T, 3, 3] pixels of a picture of height x width    w2c: [T, 4, 4]

    raises: ValueError for tensors that do not fit together, that hold NaN, or rotations that are none
    """

    K: Tensor
    w2c: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.K.ndim != 3 or self.K.shape[1:] != (3, 3) or self.w2c.shape != (len(self.K), 4, 4) or not len(self.K):
            raise ValueError(f"Camera: K of shape {list(self.K.shape)} and w2c of shape {list(self.w2c.shape)}, "
                             "accepted: [frames, 3, 3] and [frames, 4, 4].")  # fmt: skip
        if not (self.K.isfinite().all() and self.w2c.isfinite().all()):
            raise ValueError("Camera: K or w2c holds a value that is not a number.")
        rotation = self.w2c[:, :3, :3].double()
        if (rotation @ rotation.transpose(1, 2) - torch.eye(3).double()).abs().max() > 1e-3:
            raise ValueError("Camera: w2c holds something that is not a rotation (rows must be of length 1 and at "
                             "right angles). Accepted: world-to-camera matrices without scale.")  # fmt: skip

    @property
    def frames(self) -> int:
        return len(self.K)

    @property
    def centre(self) -> Tensor:
        """Camera centres in the world. returns: [T, 3]"""
        return -(self.w2c[:, :3, :3].transpose(1, 2) @ self.w2c[:, :3, 3:])[..., 0]

    def at(self, frames: slice | Tensor) -> CameraPath:
        return replace(self, K=self.K[frames], w2c=self.w2c[frames])

    def sized(self, height: int, width: int) -> CameraPath:
        """The same view in a picture of another size; another shape of picture stretches it."""
        K = self.K.clone()
        K[:, 0] *= width / self.width
        K[:, 1] *= height / self.height
        return replace(self, K=K, height=height, width=width)

    def fitted(self, frames: int, rate: float = 1.0, how: str = "stretch") -> CameraPath:
        """The path brought to the length of a clip. Between two frames the centre goes straight and the rotation is the
        one nearest to the mix of both.

        rate: frames of the path to a frame of the clip, for "trim"    how: as in `BodyTrack.fitted`
        """
        at = torch.arange(frames, dtype=torch.float64)
        at = at * (self.frames - 1) / max(frames - 1, 1) if how == "stretch" else at * rate
        at = at.clamp(max=self.frames - 1)
        low = at.floor().long()
        high, share = (low + 1).clamp(max=self.frames - 1), (at - low)[:, None, None]
        w2c = self.w2c.double()
        u, _, v = torch.linalg.svd(w2c[low, :3, :3].lerp(w2c[high, :3, :3], share))
        centre = self.centre.double()[low].lerp(self.centre.double()[high], share[..., 0])
        found = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
        found[:, :3, :3] = u @ v
        found[:, :3, 3] = -(u @ v @ centre[..., None])[..., 0]
        K = self.K[low].lerp(self.K[high], share.to(self.K))
        return replace(self, K=K, w2c=found.to(self.w2c))

    def covering(self, height: int, width: int) -> CameraPath:
        """The view in a picture of another size and shape: scaled until it covers the picture, cropped at the edges."""
        scale = max(height / self.height, width / self.width)
        K = self.K.clone()
        K[:, :2] *= scale
        K[:, 0, 2] += (width - self.width * scale) / 2
        K[:, 1, 2] += (height - self.height * scale) / 2
        return replace(self, K=K, height=height, width=width)

    def view(self, points: Tensor) -> Tensor:
        """World to camera metres. points: [P, T, N, 3] -> [P, T, N, 3]"""
        return points @ self.w2c[:, :3, :3].transpose(1, 2) + self.w2c[:, None, :3, 3]
