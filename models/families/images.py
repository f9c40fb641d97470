"""Image models that share the hooks: Flux, Qwen-Image, Lumina 2 and Z-Image. Source: comfy/ldm/ in ComfyUI 0.30.0.

Joint attention, text first, then the image (called video here, T = 1), then reference images.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, padded


def _image(shape, patch: int):
    """T H W in patches of a latent B C H W or B C T H W."""
    return padded((shape[2] if len(shape) == 5 else 1, *shape[-2:]), (1, patch, patch))


def _layout(i: Inputs) -> TokenLayout:
    patch = i.model.patch_size
    references = [("reference", _image(shape, patch)) for shape in i.shapes("ref_latents")]
    return arrange([("text", i.text), ("video", padded(i.latent, (1, patch, patch))), *references])


def _layout_lumina(i: Inputs) -> TokenLayout | str:
    if i.conds.get("ref_latents") or i.conds.get("ref_contexts"):
        return "reference images change the order of Z-Image's tokens"
    grid = padded(i.latent, (1, i.model.patch_size, i.model.patch_size))
    multiple = i.model.pad_tokens_multiple or 1
    image = grid[1] * grid[2]
    return arrange([("text", i.text), ("padding", -i.text % multiple), ("video", grid), ("padding", -image % multiple)])


def _others_lumina(i: Inputs) -> dict[int, str]:
    multiple = i.model.pad_tokens_multiple or 1
    _, rows, columns = padded(i.latent, (1, i.model.patch_size, i.model.patch_size))
    image = rows * columns
    return {i.text + -i.text % multiple: "the caption refiner", image + -image % multiple: "the noise refiner"}


FAMILIES = (
    Family("flux", ("Flux",), ("double_blocks", "single_blocks"), 1, 8, _layout, others=lambda i: {},
           streams={"double_blocks": ("img", "txt"), "single_blocks": ("x",)}),
    Family("qwen_image", ("QwenImageTransformer2DModel",), ("transformer_blocks",), 1, 8, _layout, others=lambda i: {},
           streams={"transformer_blocks": ("encoder_hidden_states", "hidden_states")},
           modules=("attn", "img_mlp", "txt_mlp")),
    Family("lumina2", ("NextDiT",), ("layers",), 1, 8, _layout_lumina, _others_lumina, streams={"layers": ("x",)},
           modules=("attention", "feed_forward")),
)
