"""What our own model is asked to show: bodies, a camera, who they are, and what is behind them.

A scene is made before the model is known, so it holds latents as the VAE gave them and no tokens. `conditions` makes
the tensors that the network takes, when the sampler has said the size and the model how it looks at depth.

F latent frames   H W latent size   h w token grid   T pixel frames   M points of all people   C channels   S sub-frames
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .body import BodyTrack
from .camera import CameraPath
from .clip_fit import reference_features
from .rays import folded, pluecker
from .time_folding import latent_frames
from .tokens import body_tokens

if TYPE_CHECKING:
    from ..nets.dit_config import DiTConfig

PIXELS = 8  # rows and columns of a latent entry


@dataclass(frozen=True)
class Reference:
    """A picture of the people. latent: [1, C, 1 or more, h', w']    body, camera: of that view, their first frames; no
    camera: one that holds and sees everybody"""

    latent: Tensor
    body: BodyTrack
    camera: CameraPath | None = None


@dataclass(frozen=True)
class Background:
    """What is behind the people. latent: [1, C, F, H, W]    mask: [T or 1, ...] 1 where it is given, None everywhere"""

    latent: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """camera: of the clip, its length and shape of picture    body: of the same length

    raises: ValueError when parts do not fit together
    """

    camera: CameraPath
    body: BodyTrack | None = None
    reference: Reference | None = None
    background: Background | None = None

    def __post_init__(self) -> None:
        if self.body is not None and self.body.frames != self.camera.frames:
            raise ValueError(f"the body has {self.body.frames} frames and the camera {self.camera.frames}; they need "
                             "the same number. Stretch or trim one of them.")  # fmt: skip
        if self.reference is None or self.body is None:
            return
        seen = self.reference.body
        if seen.people != self.body.people or not torch.equal(seen.part, self.body.part):
            raise ValueError(f"the reference shows {seen.people} people of {len(seen.part)} points, the clip has "
                             f"{self.body.people} of {len(self.body.part)}. Take both bodies from the same kind of "
                             "source, with the same people in the same order.")  # fmt: skip

    @property
    def unpeopled(self) -> Scene:
        """The same camera and background without anybody: what guidance compares with."""
        return replace(self, body=None, reference=None)


def conditions(
    scene: Scene, config: DiTConfig, size: tuple[int, int, int], process_in: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What the network takes, a batch of one each.

    size: F, H, W of the latent    process_in: from the VAE's latents to the model's, [1, C, F, H, W]
    returns: body_place [1, F, M, 3], body_usable [1, F, M], body_content [1, F, M, S, 3], body_person and body_part
        [1, M], body_identity [1, M, C + 1], rays [1, 24, F, h, w], reference [1, C, h', w'], background
        [1, C + 1, F, H, W]; those that the scene or the model lacks are left out
    raises: ValueError when scene, latent and model do not fit together
    """
    F, H, W = size
    check_size(scene.camera, config, size)
    found = {}
    shown = scene.reference and first_frame(scene.reference.latent, config, process_in)
    if scene.body is not None:
        tokens = body_tokens(scene.body, scene.camera, config.temporal_stride, config.depth_mode)
        found |= {f"body_{name}": getattr(tokens, name)[None] for name in
                  ("place", "usable", "content", "person", "part")}  # fmt: skip
        if config.identity:
            found["body_identity"] = identity_of(scene.reference, shown, tokens.usable, config.identity)[None]
    if config.camera:
        rays = pluecker(scene.camera, H // config.patch, W // config.patch)
        found["rays"] = folded(rays, F, config.temporal_stride).transpose(0, 1)[None]
    if shown is not None and config.reference:
        h, w = (n - n % config.patch for n in shown.shape[-2:])
        found["reference"] = shown[None, :, :h, :w]
    if scene.background is not None:
        found["background"] = background_of(scene.background, config, size, process_in)
    return found


def check_size(camera: CameraPath, config: DiTConfig, size: tuple[int, int, int]) -> None:
    """raises: ValueError"""
    F, H, W = size
    wanted = latent_frames(camera.frames, config.temporal_stride)
    if wanted != F:
        raise ValueError(f"the latent has {F} frames, and the scene's {camera.frames} pixel frames make {wanted}. "
                         "Sample the latent that the scene gives, or make the scene as long as the clip.")  # fmt: skip
    if H * camera.width != W * camera.height:
        raise ValueError(f"the latent is {W} x {H}, another shape than the scene's picture of {camera.width} x "
                         f"{camera.height}. Sample the latent that the scene gives, or set width and height to the "
                         "clip's.")  # fmt: skip
    if H % config.patch or W % config.patch:
        raise ValueError(f"the latent is {W} x {H}; this model takes multiples of {config.patch}. Set width and "
                         f"height to multiples of {PIXELS * config.patch} pixels.")  # fmt: skip


def first_frame(latent: Tensor, config: DiTConfig, process_in: Callable[[Tensor], Tensor]) -> Tensor:
    """The first frame of a latent, as the model sees it. returns: [C, h', w']"""
    if not (config.identity or config.reference):
        raise ValueError("this model was trained without a reference view. Leave reference out.")
    check_channels("reference", latent, config)
    return process_in(latent[:1, :, :1])[0, :, 0].float()


def identity_of(reference: Reference | None, shown: Tensor | None, usable: Tensor, channels: int) -> Tensor:
    """Zeros where the reference shows nothing: the model has learned that as "not seen". returns: [M, C + 1]"""
    if reference is None:
        return torch.zeros(usable.shape[1], channels + 1)
    return reference_features(shown, reference.body, reference.camera, PIXELS)


def background_of(given: Background, config: DiTConfig, size: tuple[int, int, int], process_in) -> Tensor:
    """The background and where it is given. returns: [1, C + 1, F, H, W]"""
    if config.extra != config.channels + 1:
        raise ValueError("this model takes no background. Disconnect it, or load a model that was trained with one.")
    check_channels("background", given.latent, config)
    if tuple(given.latent.shape[2:]) != size:
        raise ValueError(f"the background's latent is {list(given.latent.shape[2:])} (frames, rows, columns), the "
                         f"clip's {list(size)}. Encode a background video of the clip's length and size; repeat the "
                         "frame of a still one.")  # fmt: skip
    mask = torch.ones(1, 1, *size) if given.mask is None else folded_mask(given.mask, size, config.temporal_stride)
    return torch.cat([process_in(given.latent[:1]).float() * mask, mask], 1)


def folded_mask(mask: Tensor, size: tuple[int, int, int], stride: int) -> Tensor:
    """A mask of pixel frames at latent size; 1 only where all pixel frames of a latent frame are given.

    mask: [T or 1, height, width]    returns: [1, 1, F, H, W], 0 or 1
    raises: ValueError for a mask of another length
    """
    F, H, W = size
    if len(mask) != 1 and latent_frames(len(mask), stride) != F:
        raise ValueError(f"the background's mask has {len(mask)} frames; accepted: 1, or as many as the clip.")
    small = interpolate(mask[:, None].float(), (H, W), mode="area")[:, 0] > 0.5
    if len(mask) == 1:
        small = small.expand((F - 1) * stride + 1, -1, -1)
    rest = small[1 : (F - 1) * stride + 1].unflatten(0, (F - 1, stride)).all(1)
    return torch.cat([small[:1], rest])[None, None].float()


def check_channels(name: str, latent: Tensor, config: DiTConfig) -> None:
    """raises: ValueError"""
    if latent.ndim != 5 or latent.shape[1] != config.channels:
        raise ValueError(f"the {name}'s latent is of shape {list(latent.shape)}; this model takes [1, "
                         f"{config.channels}, frames, rows, columns]. Encode it with the model's own VAE.")  # fmt: skip
