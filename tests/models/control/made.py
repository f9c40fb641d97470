"""Bodies, cameras and adapters for tests: random weights that show, truths that can be told by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from interspatial.models.control.body import BodyTrack
from interspatial.models.control.camera import CameraPath
from interspatial.models.nets.interspatial_adapter import AdapterConfig, InterspatialAdapter

WIDTH = 128  # of the tiny hosts


def random_body(people: int = 2, frames: int = 9, points: int = 11, seed: int = 0, fps: float = 16.0) -> BodyTrack:
    """Points in a box of 2 m around the origin, half a metre of it in depth."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([2.0, 2.0, 0.5])
    found = (torch.rand(people, frames, points, 3, generator=generator) - 0.5) * size
    part = torch.randint(0, 14, (points,), generator=generator)
    return BodyTrack(found, torch.ones(people, frames, points, dtype=torch.bool), part, fps)


def hold(frames: int = 9, height: int = 64, width: int = 96, distance: float = 4.0, focal: float = 100.0,
         centre: tuple[float, float] | None = None) -> CameraPath:  # fmt: skip
    """On the +z side, looking at the origin. focal: pixels    centre: of the picture in pixels, its middle if None"""
    cx, cy = centre or (width / 2, height / 2)
    K = torch.tensor([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]).repeat(frames, 1, 1)
    w2c = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).repeat(frames, 1, 1)
    w2c[:, 2, 3] = distance
    return CameraPath(K, w2c, height, width)


def random_network(config: AdapterConfig, seed: int = 0, scale: float = 0.2) -> InterspatialAdapter:
    """Weights large enough that what the points say shows in the host."""
    network = InterspatialAdapter(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        middle = 1.0 if name.endswith("norm.weight") else 0.0
        value.copy_(torch.randn(value.shape, generator=generator) * scale + middle)
    return network


def untrained_network(config: AdapterConfig, seed: int = 0) -> InterspatialAdapter:
    network = random_network(config, seed)
    network.start()
    return network


@dataclass(frozen=True, eq=False)
class Held:
    """An adapter as `InterspatialControl` takes it, without a ComfyUI around it."""

    network: InterspatialAdapter
    dtype: torch.dtype = torch.float32

    @property
    def config(self) -> AdapterConfig:
        return self.network.config


def config_for(family: str, layers=(0, 1), **others) -> AdapterConfig:
    stride = 8 if family.startswith("ltx") else 4
    return AdapterConfig(**{"family": family, "host_width": WIDTH, "layers": tuple(layers), "width": 48, "heads": 4,
                            "temporal_stride": stride, **others})  # fmt: skip


def controlled(model, adapter, body=None, camera=None, **settings):
    """A clone of a MODEL under control, with everything of the adapter random."""
    from interspatial.models import host
    from interspatial.models.control.interspatial import InterspatialControl
    from interspatial.models.report import Card

    control = InterspatialControl(adapter, body or random_body(), camera or hold(), **settings)
    return host.attach_step(model, Card("control", "control"), control)
