"""Which weights of a video model are quantised: the linear layers of its blocks, by their names and shapes alone.

Names decide, so that a file can be read tensor by tensor without a model. What is kept: embeddings, modulation, norms,
heads, the sound's way in and out; they are small, and everything hangs on them.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

from ...kernels.block_hadamard import SIZES

Shape = tuple[int, ...]

KEPT = re.compile(
    r"embed|patchify|img_in|txt_in|vector_in|guidance|time_|byt5|clip|img_emb|adaln|modulation|mod\.lin|_mod\.|mod_[xy]"
    r"|norm|head\.|final_layer|proj_out|vace_patch|audio_|music_|face_|token_refiner|connector|caption",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"(^|\.)\d+\.")
LEAST = 4096  # weights of a layer that is worth it


def layer_of(key: str) -> str | None:
    """The layer that a tensor is the weight of, None for other tensors."""
    return key.removesuffix(".weight") if key.endswith(".weight") else None


def why_kept(layer: str, shape: Shape) -> str | None:
    """Why the weight of this layer stays as it is, or None."""
    if len(shape) != 2:
        return "it is no matrix"
    if not NUMBERED.search(layer):
        return "it is in no numbered block"
    if KEPT.search(layer):
        return "it is one of the layers that everything hangs on (embedding, modulation, norm, head)"
    if shape[0] * shape[1] < LEAST:
        return f"it has fewer than {LEAST} weights"
    if shape[1] % SIZES[-1]:
        return f"its inputs are no multiple of {SIZES[-1]}"
    return None


def quantised_layers(shapes: Iterable[tuple[str, Shape]]) -> dict[str, Shape]:
    """The layers to quantise among tensors (key, shape), in the order of blocks."""
    found = {layer: shape for key, shape in shapes if (layer := layer_of(key)) and why_kept(layer, shape) is None}
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def natural(name: str) -> list:
    """A key that sorts block 2 before block 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def block_of_layer(layer: str) -> tuple[str, int] | None:
    """The stack and number of the block: ("blocks", 3) of blocks.3.ffn.0; None outside of numbered blocks."""
    match = re.match(r"(.*?)\.?(\d+)\.", layer)
    return (match[1], int(match[2])) if match else None


def role_of_layer(layer: str) -> str:
    """What it does in every block: "self_attn.q" of blocks.3.self_attn.q."""
    match = re.match(r".*?\d+\.(.*)", layer)
    return match[1] if match else layer
