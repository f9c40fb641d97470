"""Pluecker rays: they hit what the camera sees, and they are the ones of ComfyUI's own node."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.control.camera import CameraPath
from interspatial.models.control.camera_moves import Stand, moved
from interspatial.models.control.rays import folded, pluecker

STAND = Stand(torch.tensor([0.7, 1.4, 4.0]), torch.tensor([0.0, 0.9, 0.0]))


def path(frames: int = 5, height: int = 40, width: int = 56) -> CameraPath:
    start = moved(STAND.path(frames, height, width), "orbit", 50.0, STAND.aim)
    start = moved(start, "zoom", 1.4, STAND.aim)
    K = start.K.clone()
    K[:, 0, 2] += 3.0  # a principal point off the middle
    return CameraPath(K, start.w2c, height, width)


def test_rays_hit_the_points_that_the_camera_sees_there():
    camera = path()
    points = 0.8 * torch.randn(1, 5, 300, 3, generator=torch.Generator().manual_seed(3)) + torch.tensor([0.0, 1.0, 0.0])
    seen = camera.view(points)[0]
    pixel = (seen @ camera.K.transpose(1, 2))[..., :2] / seen[..., 2:]
    h, w = 400, 560  # rays so close that one passes within a twentieth of a pixel of each point
    rays = pluecker(camera, h, w)
    column, row = (pixel * 10).floor().long().unbind(-1)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    assert inside.float().mean() > 0.8
    first = points @ camera.w2c[0, :3, :3].T + camera.w2c[0, :3, 3]  # in the camera of frame 0
    for t in range(5):
        picked = rays[t][:, row[t][inside[t]], column[t][inside[t]]].T
        moment, direction = picked[:, :3], picked[:, 3:]
        off = torch.linalg.cross(first[0, t][inside[t]], direction) - moment  # 0 where the point is on the ray
        focal = camera.K[t, 0, 0]
        assert (off.norm(dim=-1) * focal / seen[t, inside[t], 2]).max() < 0.08  # pixels


def test_moments_and_directions():
    rays = pluecker(path(), 7, 9)
    assert rays.shape == (5, 6, 7, 9)
    torch.testing.assert_close(rays[:, 3:].norm(dim=1), torch.ones(5, 7, 9))
    assert (rays[:, :3] * rays[:, 3:]).sum(1).abs().max() < 1e-6
    assert rays[0, :3].abs().max() < 1e-12  # the first camera is the origin
    apart = (path().centre[4] - path().centre[0]).norm()
    assert 0.8 * apart < rays[4, :3].norm(dim=0).max() <= apart + 1e-5


def test_a_token_grid_sees_the_same_view():
    """The ray of a token is the mean of those of its pixels, but for the curve of the unit sphere."""
    camera = path()
    fine = torch.nn.functional.avg_pool2d(pluecker(camera, 40, 56), 8)
    torch.testing.assert_close(pluecker(camera, 5, 7), fine, atol=5e-3, rtol=0)


def test_folding_puts_sub_frames_side_by_side():
    rays = torch.arange(9.0)[:, None, None, None] + 100 * torch.arange(6.0)[:, None, None].expand(9, 6, 2, 3)
    found = folded(rays, 3, 4)
    assert found.shape == (3, 24, 2, 3)
    for channel in range(6):
        assert found[:, 4 * channel : 4 * channel + 4, 0, 0].sub(100 * channel).tolist() == \
            [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert folded(rays, 2, 8)[1, :4, 1, 2].tolist() == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="9 pixel frames make 3 latent frames of 4, not 4"):
        folded(rays, 4, 4)
