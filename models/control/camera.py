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

    def view(self, points: Tensor) -> Tensor:
        """World to camera metres. points: [P, T, N, 3] -> [P, T, N, 3]"""
        return points @ self.w2c[:, :3, :3].transpose(1, 2) + self.w2c[:, None, :3, 3]
