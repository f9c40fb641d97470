"""Cameras as Pluecker coordinates: the ray of each pixel or token, as six numbers that say where it runs.

T pixel frames   F latent frames   h w grid   S sub-frames (4). The first three channels are the moment o x d, the
others the unit direction d, in the camera coordinates of the first frame (OpenCV's), metres.

Source: light field networks (2106.02634); the layout of 24 channels is that of ComfyUI's WAN_CAMERA_EMBEDDING.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .camera import CameraPath
from .time_folding import latent_frames, sub_frames


def pluecker(camera: CameraPath, h: int, w: int) -> Tensor:
    """Rays through the middle of each cell of a grid over the picture. returns: [T, 6, h, w]"""
    seen = camera.sized(h, w)
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    K = seen.K.to(torch.float32)[:, None, None]
    right, down = (x - K[..., 0, 2]) / K[..., 0, 0], (y - K[..., 1, 2]) / K[..., 1, 1]
    across = normalize(torch.stack([right, down, torch.ones_like(right)], -1), dim=-1)
    first, c2w = camera.w2c[0].double(), torch.linalg.inv(camera.w2c.double())
    pose = first @ c2w  # of each camera in the first one's frame; double, for what is subtracted here is nearly equal
    direction = across @ pose[:, None, :3, :3].transpose(-1, -2).to(across)
    origin = pose[:, None, None, :3, 3].to(across).expand_as(direction)
    return torch.cat([torch.linalg.cross(origin, direction), direction], -1).permute(0, 3, 1, 2).contiguous()


def folded(rays: Tensor, count: int, stride: int) -> Tensor:
    """The pixel frames of each latent frame side by side: channel 4 c + s holds channel c of sub-frame s.

    rays: [T, 6, h, w]    count: latent frames    stride: pixel frames a latent frame    returns: [F, 24, h, w]
    raises: ValueError where there are not enough pixel frames
    """
    if latent_frames(len(rays), stride) < count:
        raise ValueError(f"Camera rays: {len(rays)} pixel frames make {latent_frames(len(rays), stride)} latent frames "
                         f"of {stride}, not {count}. Make the camera as long as the clip.")  # fmt: skip
    picked = rays[sub_frames(count, stride)]  # [F, S, 6, h, w]
    return picked.transpose(1, 2).flatten(1, 2)
