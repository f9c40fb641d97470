"""This pack's own model as a MODEL of ComfyUI: its network behind ComfyUI's signature, and how a file becomes one.

Source: comfy/model_base.py, comfy/sd.py, comfy/supported_models.py and comfy/context_windows.py of ComfyUI 0.30.0.
"""
# B batch   N tokens   M keys   H heads   D head dim   F latent frames

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.context_windows import slice_cond
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ..control.scene import Scene, conditions
from ..families.interspatial import TIMED
from ..nets.dit_config import DiTConfig
from ..nets.interspatial_attention import Attend
from ..nets.interspatial_dit import InterspatialDiT
from ..nets.point_tokens import Points
from ..quant.safetensors_stream import Reader
from .chain import FORWARD

SCENE = "interspatial_scene"  # of a conditioning: a models.control.scene.Scene
KIND = "interspatial"  # in the config of a file: the settings of the network


class UnitLatents(comfy.latent_formats.LatentFormat):
    """Of this pack's own VAE, whose latents have mean 0 and spread 1 as they are."""

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 4


LATENTS = {"wan21": comfy.latent_formats.Wan21, "unit": UnitLatents}
SHIFT = 3.0  # towards noise: what the trainings use, training/flow.py

AXES = {timed.key: timed.dim for timed in TIMED}
KEYS = {*AXES, "body_person", "body_part", "body_identity", "reference"}
# ComfyUI casts what it hands to a model to the model's dtype, all but whole numbers. Half precision would move a point
# by a tenth of a token, so these travel as the bits of their float32.
EXACT = ("body_place", "body_content")
BESIDE = (".comfy_quant", "_scale", "_scale_2", ".input_scale")  # tensors beside the weight of a quantised layer


class Network(InterspatialDiT):
    """The network as ComfyUI calls it."""

    def __init__(self, config: DiTConfig, image_model: str = KIND, dtype=None, device=None, operations=None) -> None:
        super().__init__(config, operations, device, dtype)

    def forward(self, x: Tensor, timestep: Tensor, context=None, control=None, transformer_options=None, **conds):
        """x: [B, C, F, H, W]; timestep: [B]; conds: as `InterspatialBase.extra_conds` names them -> as x"""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, control, options, **conds)

    def _forward(self, x, timestep, context, control, options, *, frames=None, rays=None, reference=None,
                 background=None, **conds) -> Tensor:  # fmt: skip
        # A call without a forward is not explained, so not offered to what replaces the video's self attention.
        others = {key: value for key, value in options.items() if key != FORWARD}
        return super().forward(x, timestep, points_of(conds), rays, reference, background,
                               frames=None if frames is None else frames[0],
                               attend_space=attend_by_comfyui(options), attend=attend_by_comfyui(others))  # fmt: skip


def attend_by_comfyui(options: Mapping[str, Any]) -> Attend:
    """Attention of the network's form through ComfyUI's, with the hooks of these transformer_options."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q: [B, N, H, D]; k, v: [B, M, H, D]; bias: [B, 1, 1, M] -> [B, N, H, D]"""
        heads = q.shape[-2]
        mask = None if bias is None else bias.to(q.dtype)
        packed = (x.flatten(-2) for x in (q, k, v))
        return optimized_attention(*packed, heads, mask=mask, transformer_options=options).unflatten(-1, (heads, -1))

    return attend


def points_of(conds: Mapping[str, Tensor]) -> Points | None:
    """The points of a forward's conditioning, None where nobody is there."""
    if "body_place" not in conds:
        return None
    place, content = (conds[name].view(torch.float32) for name in EXACT)
    return Points(place, conds["body_usable"].bool(), content, conds["body_person"], conds["body_part"],
                  conds.get("body_identity"))  # fmt: skip


class InterspatialBase(comfy.model_base.BaseModel):
    """What ComfyUI keeps around the network."""

    def __init__(self, model_config: InterspatialConfig, device=None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=Network)

    def extra_conds(self, **kwargs) -> dict:
        """From one entry of a conditioning to the tensors of `conditions`, and the numbers of the latent frames.

        raises: ValueError when scene, latent and model do not fit together
        """
        noise, device, scene = kwargs["noise"], kwargs["device"], kwargs.get(SCENE)
        found = {"frames": torch.arange(noise.shape[2])[None]}
        if kwargs.get("area") is not None:
            raise ValueError("Interspatial model: conditioning for an area of the picture is not known to this model, "
                             "whose bodies have their places in the whole of it. Leave the area out.")  # fmt: skip
        if isinstance(scene, Scene):
            try:
                found |= conditions(scene, self.diffusion_model.config, tuple(noise.shape[2:]), self.process_latent_in)
            except ValueError as error:
                raise ValueError(f"Body and Camera Scene: {error}") from error
        return {name: comfy.conds.CONDRegular(uncast(name, x).to(device)) for name, x in found.items()}

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=()):
        """What has a time axis is cut like the video. ComfyUI would guess the rest by sizes, so it is given back."""
        if cond_key not in KEYS:
            return None
        if cond_key not in AXES:
            return cond_value
        return slice_cond(cond_value, window, x_in, device, AXES[cond_key], retain_index_list=retain_index_list)


def uncast(name: str, x: Tensor) -> Tensor:
    """A tensor in the form in which it passes ComfyUI's cast to the model's dtype."""
    if name in EXACT:
        return x.float().contiguous().view(torch.int32)
    return x.int() if x.dtype == torch.bool else x


class InterspatialConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's lists of models hold of a model; this one is in none of them."""

    unet_extra_config: ClassVar = {}
    supported_inference_dtypes: ClassVar = [torch.bfloat16, torch.float16, torch.float32]

    def __init__(self, config: DiTConfig, latent: str = "wan21", shift: float = SHIFT) -> None:
        self.latent_format = LATENTS[latent]
        self.sampling_settings = {"shift": shift}
        super().__init__({"image_model": KIND, "config": config})
        self.memory_usage_factor = memory_factor(config)

    def get_model(self, state_dict, prefix="", device=None) -> InterspatialBase:
        return InterspatialBase(self, device=device)


def memory_factor(config: DiTConfig) -> float:
    """ComfyUI multiplies this by positions of the latent, bytes of a value and 10 kB.

    Peak of a forward (measure.alive) in 16 bits at 480x832x81: 0.40 to 0.45 thousandths of the width for 512 to 2048
    points at widths of 192 to 1536, and 0.53 for 4096 points at a width of 192.
    """
    return 0.6 * config.width / 1000


def is_ours(metadata: Mapping[str, str] | None) -> bool:
    """True for the metadata of a file of this model."""
    try:
        found = json.loads((metadata or {}).get("config", "null"))
    except ValueError:
        return False
    return isinstance(found, dict) and KIND in found


def why_not_ours(path: str) -> str | None:
    """Why a file is none of this model, as the rest of a sentence that begins with its name."""
    try:
        metadata = Reader(path).metadata
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}. Download or write the file anew."
    if is_ours(metadata):
        return None
    return ("is no interspatial model: nothing in its metadata says so. Accepted: interspatial_tiny and other files of "
            "its kind. Load other models with Load Diffusion Model.")  # fmt: skip


def config_of(metadata: Mapping[str, str]) -> InterspatialConfig:
    """raises: ValueError for settings that this version does not know"""
    found = json.loads(metadata["config"])
    latent = found.get("latent", "wan21")
    if latent not in LATENTS:
        raise ValueError(f"its latents are of kind {latent!r}. Accepted: {', '.join(LATENTS)}. Update the pack.")
    try:
        return InterspatialConfig(DiTConfig.of(found[KIND]), latent, float(found.get("shift", SHIFT)))
    except TypeError as error:
        raise ValueError(f"its config cannot be read ({error}). Download or write the file anew.") from error


def patcher_of(tensors: dict[str, Tensor], config: InterspatialConfig, options: Mapping, disable_dynamic: bool):
    """MODEL, in the dtype and on the devices that ComfyUI's loader would choose.

    options: custom_operations and dtype, as ComfyUI's loader takes them
    raises: ValueError for tensors that are not this network's
    """
    check_names(tensors, config.unet_config["config"])
    manage, supported = comfy.model_management, list(config.supported_inference_dtypes)
    device, offload = manage.get_torch_device(), manage.unet_offload_device()
    dtype = options.get("dtype") or manage.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors), supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(tensors))  # fmt: skip
    config.set_inference_dtype(dtype, manage.unet_manual_cast(dtype, device, supported), device=device)
    config.custom_operations = options.get("custom_operations")
    model = config.get_model(tensors)
    patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher(model, load_device=device, offload_device=offload)
    if not manage.is_device_cpu(offload):
        model.to(offload)
    model.load_model_weights(tensors, "", assign=patcher.is_dynamic())
    return patcher


def check_names(tensors: Mapping[str, Tensor], config: DiTConfig) -> None:
    """raises: ValueError when weights are missing, or there for another network"""
    wanted = set(InterspatialDiT(config, device="meta").state_dict())
    missing = sorted(wanted - set(tensors))
    foreign = sorted(name for name in set(tensors) - wanted if not name.endswith(BESIDE))
    for names, what in ((missing, "lacks"), (foreign, "has in excess of its config")):
        if names:
            raise ValueError(f"{len(names)} tensors that it {what}, the first is {names[0]}")
