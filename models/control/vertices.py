"""Meshes of bodies: which vertices are followed, which way they face, and to which part of the body they belong.

P people   T frames   V vertices   N points   M triangles   J joints (24)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..puppet.body import LIMBS, PARTS
from .skeleton import clothe

GOLDEN = 0.6180339887498949
LOOKED_AT = 8  # frames that decide to which part a vertex belongs: more change no vertex of a walking SMPL-like body


def choose(vertices: int, count: int) -> Tensor:
    """Which vertices are followed: the same for every mesh of this size, in every pose and clip.

    A choice by distance would depend on the pose of the frame that it was made in. Vertices are numbered part by part,
    so even steps through the numbers go through the whole body; fine parts, as face and hands, get more points, as they
    have more vertices. The steps are those of the golden ratio: more points contain the fewer.
    returns: [min(count, V)] int64, ascending
    """
    order = (torch.arange(vertices, dtype=torch.float64) * GOLDEN % 1).argsort()
    return order[:count].sort().values


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vectors out of the mesh, triangles weighed by area. vertices: [P, T, V, 3]    faces: [M, 3]"""
    found = torch.empty_like(vertices)
    for person, clip in enumerate(vertices):
        for t, frame in enumerate(clip):
            a, b, c = frame[faces].unbind(1)
            out = torch.linalg.cross(b - a, c - a)
            total = torch.zeros_like(frame)
            for corner in range(3):
                total.index_add_(0, faces[:, corner], out)
            found[person, t] = normalize(total, dim=-1)
    return found


def nearest_parts(points: Tensor, joints: Tensor) -> Tensor:
    """The part of the limb whose skin is nearest, on the mean of some frames of the first person.

    points: [P, T, N, 3]    joints: [P, T, 24, 3]    returns: [N] index in PARTS
    """
    frames = torch.linspace(0, points.shape[1] - 1, min(LOOKED_AT, points.shape[1])).long()
    body = clothe(joints[:1, frames])
    start, along = body.start[0, :, None], (body.tip - body.start)[0, :, None]  # [T, 1, L, 3]
    away = points[0, frames][:, :, None] - start
    share = ((away * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-12)).clamp(0, 1)
    distance = (away - share[..., None] * along).norm(dim=-1) - body.radius[0]
    limb = distance.nan_to_num(0.0).mean(0).argmin(-1)
    return torch.tensor([PARTS.index(one.part) for one in LIMBS])[limb]
