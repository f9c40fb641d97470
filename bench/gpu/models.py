"""Video models of real size with random weights, through ComfyUI's own loader; and small ones of the same make.

The names, shapes and types of the weights are those of ComfyUI's module, built on the meta device. Weights are normal
with the variance that keeps activations as they are; norms are near 1, biases and modulation near 0, so that numbers
stay finite through all blocks in 16 bits. Speed and memory do not depend on them.
"""
# T H W latent frames, rows and columns   N outputs   K inputs

from __future__ import annotations

import gc
import math
import re
from dataclasses import dataclass, replace

import comfy.ldm.hunyuan_video.model
import comfy.ldm.minimax.model
import comfy.ldm.wan.model
import comfy.model_detection
import comfy.model_management
import comfy.nested_tensor
import comfy.ops
import comfy.sd
import torch
from interspatial.models.attention.presets import FAMILIES, WAN_HD, WAN_SD, Preset
from interspatial.models.host.quant_layouts import as_weight
from interspatial.models.host.quant_loading import compute_dtype
from interspatial.models.host.quant_ops import quantised_ops
from interspatial.models.host.quant_patcher import quantised_patcher
from interspatial.models.quant.format import FORMATS
from interspatial.models.quant.layers import quantised_layers
from interspatial.models.quant.recipe import Choice
from torch import Tensor, nn

from ..quant.cost import ROWS, tiled

MODULATION = re.compile(r"modulation|mod\.lin|time_projection|adaln_proj")
SMALL = 0.02  # standard deviation of what is near 0, and of norms around 1
RESERVE = 45e9  # bytes beside the weights: the widest tensors of MiniMax-H3 at 108k tokens come to 20e9


@dataclass(frozen=True)
class Network:
    """One architecture. cls, config: ComfyUI's module    blocks: names of the settings that count blocks"""

    cls: type[nn.Module]
    config: dict
    blocks: tuple[str, ...]

    def on_meta(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state dict without memory."""
        module = self.cls(**self.config, dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init)
        return {name: x.to("meta") for name, x in module.state_dict().items()}

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return sum(self.config[name] for name in self.blocks)

    def with_depth(self, share: float) -> Network:
        """The same with a share of the blocks of each kind, one at least."""
        counts = {name: max(1, math.floor(share * self.config[name])) for name in self.blocks}
        return replace(self, config={**self.config, **counts})


WAN = Network(comfy.ldm.wan.model.WanModel, {
    "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16, "text_dim": 4096,
}, ("num_layers",))  # fmt: skip
HUNYUAN = Network(comfy.ldm.hunyuan_video.model.HunyuanVideo, {
    "in_channels": 16, "out_channels": 16, "context_in_dim": 4096, "vec_in_dim": 768, "hidden_size": 3072,
    "mlp_ratio": 4.0, "num_heads": 24, "depth": 20, "depth_single_blocks": 40, "axes_dim": [16, 56, 56], "theta": 256,
    "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}, ("depth", "depth_single_blocks"))  # fmt: skip
MINIMAX = Network(comfy.ldm.minimax.model.MiniMaxH3Model, {"num_layers": 50}, ("num_layers",))

SMALL_WAN = replace(WAN, config=WAN.config | {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 3})
SMALL_HUNYUAN = replace(HUNYUAN, config=HUNYUAN.config | {
    "hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 3})  # fmt: skip
SMALL_MINIMAX = replace(MINIMAX, config={
    "num_layers": 3, "hidden_size": 256, "token_refiner_num_layers": 1, "num_attention_heads": 2,
    "ffn_hidden_size": 256, "text_dim": 64, "time_embed_hidden_size": 64, "time_embed_dim": 32,
    "timestep_input_dim": 32})  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model and what it samples.

    latents: shapes of the latents, the video first    text: tokens and channels of the prompt
    preset: where Sparse Video Attention stands in such a run    rounds: timed rounds, fewer where a step is long
    """

    name: str
    network: Network
    latents: tuple[tuple[int, ...], ...]
    text: tuple[int, int]
    preset: Preset
    rounds: int = 2

    @property
    def tokens(self) -> int:
        """Of the video, in patches of 1 x 2 x 2."""
        _, _, T, H, W = self.latents[0]
        return T * (H // 2) * (W // 2)

    def latent(self):
        """An empty LATENT's samples; nested where the model makes sound too."""
        zeros = [torch.zeros(shape) for shape in self.latents]
        return zeros[0] if len(zeros) == 1 else comfy.nested_tensor.NestedTensor(zeros)

    def prompt(self) -> list:
        """A conditioning with a random text and vector."""
        draw = torch.Generator().manual_seed(1)
        pooled = torch.randn(1, 768, generator=draw)
        return [[torch.randn(1, *self.text, generator=draw), {"pooled_output": pooled}]]


def _audio(steps: int) -> tuple[int, ...]:
    return (1, 32, 2, steps)


SHAPES = {shape.name: shape for shape in (
    Shape("wan480", WAN, ((1, 16, 21, 60, 104),), (512, 4096), WAN_SD, rounds=3),
    Shape("wan720", WAN, ((1, 16, 21, 90, 160),), (512, 4096), WAN_HD),
    Shape("hunyuan720", HUNYUAN, ((1, 16, 33, 90, 160),), (256, 4096), FAMILIES["hunyuan_video"]),
    # 362 frames of 1344 x 768: 107 latent frames, and 603 moments of sound
    Shape("minimax_h3", MINIMAX, ((1, 24, 107, 48, 84), _audio(603)), (512, 5120), FAMILIES["minimax_h3"], rounds=1),
)}  # fmt: skip
SMOKE = {
    "wan480": replace(SHAPES["wan480"], network=SMALL_WAN, latents=((1, 16, 3, 16, 24),)),
    "wan720": replace(SHAPES["wan720"], network=SMALL_WAN, latents=((1, 16, 3, 18, 26),)),
    "hunyuan720": replace(SHAPES["hunyuan720"], network=SMALL_HUNYUAN, latents=((1, 16, 3, 16, 24),)),
    "minimax_h3": replace(SHAPES["minimax_h3"], network=SMALL_MINIMAX, latents=((1, 24, 3, 16, 24), _audio(5)),
                          text=(16, 64)),
}  # fmt: skip


def fill(name: str, x: Tensor, draw: torch.Generator) -> None:
    """Write random values into a weight in place. draw: on its device"""
    if name.endswith("inv_freq"):
        x.copy_(1e4 ** (-torch.arange(len(x), device=x.device) / len(x)))
    elif x.ndim <= 1 or name.endswith("modulation"):
        norm = "norm" in name and not name.endswith("bias")
        x.normal_(1.0 if norm else 0.0, SMALL, generator=draw)
    else:
        gain = 0.1 if MODULATION.search(name) else 1.0
        x.normal_(0, gain * math.prod(x.shape[1:]) ** -0.5, generator=draw)


def weights_dtype(device: str) -> torch.dtype:
    """Of the file that a user has; ComfyUI computes in what it chooses for the device."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def fitting(network: Network, device: str) -> Network:
    """The network, with fewer blocks where this card has no room for its weights and RESERVE."""
    if device == "cpu":
        return network
    size = sum(x.nbytes for x in network.on_meta(weights_dtype(device)).values())
    free, _ = torch.cuda.mem_get_info()
    return network if size + RESERVE <= free else network.with_depth(max(0.0, (free - RESERVE) / size))


def random_model(network: Network, device: str):
    """A MODEL of ComfyUI, loaded on the device. Call under inference mode.

    The loader is given one number for each weight, expanded to its shape, and a default device: so the module is made
    on the device at once, nothing is there twice, and values are drawn in place.
    """
    given = {name: torch.zeros((), dtype=x.dtype, device=device).expand(x.shape)
             for name, x in network.on_meta(weights_dtype(device)).items()}  # fmt: skip
    model = _loaded(given, {}, device)
    draw = torch.Generator(device).manual_seed(0)
    for name, x in model.model.diffusion_model.state_dict().items():
        fill(name, x, draw)
    return model


def quantised_model(network: Network, choice: Choice, act_bits: int, device: str):
    """The same with the layers of its blocks in a format. raises: ValueError for one that has layers of its own basis

    Each layer has the same ROWS rows of codes over and over, in memory of its own.
    """
    meta = network.on_meta(weights_dtype(device))
    config = comfy.model_detection.model_config_from_unet(dict(meta), "")
    dtype = compute_dtype(config, torch.device(device))
    form, draw = FORMATS[choice.format], torch.Generator(device).manual_seed(0)
    shapes = quantised_layers((key, tuple(x.shape)) for key, x in meta.items())
    made: dict[int, object] = {}  # by inputs
    given = {}
    for key, x in meta.items():
        shape = shapes.get(key.removesuffix(".weight"))
        if shape is None or form.why_not(shape, choice.bits):
            given[key] = torch.empty(x.shape, dtype=x.dtype, device=device)
            fill(key, given[key], draw)
            continue
        if shape[1] not in made:
            made[shape[1]] = _encoded(form, shape[1], choice.bits, device)
        given[key] = as_weight(tiled(made[shape[1]], shape[0]), dtype, act_bits)
    options = {"custom_operations": quantised_ops(dtype, torch.device(device)), "dtype": dtype}
    return quantised_patcher(_loaded(given, options, device))


def _encoded(form, inputs: int, bits: int, device: str):
    """ROWS random rows in a format, on the device."""
    rows = torch.randn(ROWS, inputs, generator=torch.Generator().manual_seed(0)) * inputs**-0.5
    coded = form.encode(rows, bits)
    if not coded.basis.plain:
        raise ValueError(f"The whole step: {form.label} keeps a basis of its own for each layer. Accepted: formats "
                         "that only rotate, such as vidit_q without a calibration.")  # fmt: skip
    table = None if coded.table is None else coded.table.to(device)
    return replace(coded, codes=coded.codes.to(device), scale=coded.scale.to(device), table=table)


def _loaded(weights: dict[str, Tensor], options: dict, device: str):
    """Through ComfyUI's loader, and onto the device for good."""
    with torch.device(device):
        # dynamic loading would take the given tensors themselves, expanded ones too
        model = comfy.sd.load_diffusion_model_state_dict(weights, options, disable_dynamic=True)
    model.model.model_sampling.to("cpu")  # where ComfyUI has it
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model


def forget() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    comfy.model_management.cleanup_models()
    comfy.model_management.soft_empty_cache()


