"""Router files: safetensors in the layouts of DyDiT and DyFLUX, with what our own training adds.

    blocks.3.attn_rate.router.weight                        DyDiT: heads
    blocks.3.mlp_rate.router.weight                         MLP groups, as many as rows and one more
    blocks.3.token_selection.mlp_head.{0,2}.weight          tokens
    transformer_blocks.3.token_selection.{linear_t,norm,router}.weight           DyFLUX: double blocks
    single_transformer_blocks.3.token_selection...                               single blocks
    diffusion_model.blocks.3.ffn.0.diff                     changes of the model's own weights, as in LoRA files

The published files hold the whole model too; those weights are not read, and belong into a model file.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .plan import Shares
from .routers import Affine, BlockRouter, TokenHead, TokenSelector

MARK, VERSION = "interspatial_dynamic_router", 1
UNSAFE = (".pt", ".pth", ".bin", ".ckpt")
CHANGES = "diffusion_model."
DYDIT = re.compile(r"(?:^|\.)(blocks)\.(\d+)\.(attn_rate\.router|mlp_rate\.router|token_selection\.mlp_head\.[02])"
                   r"\.(weight|bias)$")  # fmt: skip
DYFLUX = re.compile(r"(?:^|\.)(transformer_blocks|double_blocks|single_transformer_blocks|single_blocks)\.(\d+)"
                    r"\.token_selection\.(linear_t|norm|router)\.(weight|bias)$")  # fmt: skip
STACKS = {"blocks": 0, "transformer_blocks": 0, "double_blocks": 0, "single_transformer_blocks": 1, "single_blocks": 1}


@dataclass(frozen=True, eq=False)
class RouterFile:
    """layout: "dydit" or "dyflux"    routers: one a block, all stacks in order of execution
    groups: parts of an MLP, 1 without routers for them
    changes: of the model's weights, by their names in LoRA files
    """

    layout: str
    routers: tuple[BlockRouter, ...]
    groups: int = 1
    shares: Shares | None = None
    changes: dict[str, Tensor] = field(default_factory=dict)


def read_router(path: str | Path) -> RouterFile:
    """The routers in a file.

    raises: ValueError that names the file and says what is wrong with it
    """
    path = Path(path)
    try:
        if path.suffix in UNSAFE:
            raise ValueError("its format may hold code that runs when it is opened")
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(MARK, "{}"))
            names = list(file.keys())
            layout, found = _named(names)
            changes = {name: file.get_tensor(name) for name in names if name.startswith(CHANGES)}
            routers = _routers(layout, {place: file.get_tensor(name).float() for place, name in found.items()})
        return RouterFile(layout, routers, _groups(routers), _shares(about, len(routers)), changes)
    except (SafetensorError, OSError, KeyError, TypeError, IndexError, ValueError) as error:
        said = f"{error} is missing in it" if isinstance(error, KeyError) else error
        raise ValueError(
            f"The router file {path} cannot be used: {said}. Accepted: safetensors with routers named as in DyDiT or "
            "DyFLUX. A .pt file that you trust becomes one by safetensors.torch.save_file: the help page of Load "
            "Dynamic Router says how."
        ) from error


def _named(names: list[str]) -> tuple[str, dict[tuple, str]]:
    """The layout, and the file's name for each (stack, block, part, weight or bias)."""
    for layout, pattern in (("dyflux", DYFLUX), ("dydit", DYDIT)):
        matches = [(name, match) for name in names if (match := pattern.search(name))]
        if matches:
            return layout, {(STACKS[m[1]], int(m[2]), m[3], m[4]): name for name, m in matches}
    raise ValueError("it holds no router")


def _routers(layout: str, tensors: dict[tuple, Tensor]) -> tuple[BlockRouter, ...]:
    parts: dict[tuple, dict[str, Affine]] = defaultdict(dict)
    for stack, block, part, kind in tensors:
        if kind == "weight":
            affine = Affine(tensors[stack, block, part, "weight"], tensors[stack, block, part, "bias"])
            if affine.weight.shape[0] != affine.bias.shape[0] or affine.bias.ndim != 1:
                raise ValueError(f"weight and bias of {part} of block {block} do not fit each other")
            parts[stack, block][part] = affine
    places = sorted(parts)
    for stack in {stack for stack, _ in places}:
        blocks = [block for own, block in places if own == stack]
        if layout == "dyflux" and blocks != list(range(len(blocks))):
            raise ValueError("it has no router for some of the blocks before its last one")
    if layout == "dyflux":
        return tuple(_selector(parts[place]) for place in places)
    return tuple(_dydit(parts.get((0, block), {})) for block in range(places[-1][1] + 1))


def _selector(parts: dict[str, Affine]) -> BlockRouter:
    selector = TokenSelector(parts["linear_t"], parts["norm"], parts["router"])
    width = selector.norm.weight.numel()
    if selector.time.weight.shape != (4 * width, width) or selector.router.weight.shape != (1, width):
        raise ValueError("the parts of a token selector do not fit each other")
    return BlockRouter(tokens=selector)


def _dydit(parts: dict[str, Affine]) -> BlockRouter:
    """Blocks without a router compute everything, as do those behind the last one in the file."""
    first, second = (parts.get(f"token_selection.mlp_head.{i}") for i in (0, 2))
    if (first is None) != (second is None):
        raise KeyError("a layer of token_selection")
    if first and second.weight.shape != (1, first.weight.shape[0]):
        raise ValueError("the two layers of a token router do not fit each other")
    tokens = TokenHead(first, second) if first else None
    return BlockRouter(parts.get("attn_rate.router"), parts.get("mlp_rate.router"), tokens)


def _groups(routers: tuple[BlockRouter, ...]) -> int:
    counts = {router.groups.weight.shape[0] + 1 for router in routers if router.groups}
    if len(counts) > 1:
        raise ValueError("its blocks have different numbers of MLP groups")
    return counts.pop() if counts else 1


def _shares(about: dict, blocks: int) -> Shares | None:
    if not about:
        return None
    if about.get("version") != VERSION:
        raise ValueError(f"its format is version {about.get('version')}, this pack reads version {VERSION}")
    shares = Shares(tuple(map(float, about["sigmas"])), tuple(tuple(map(float, row)) for row in about["shares"]))
    if len(shares.sigmas) != len(shares.shares) or any(len(row) != blocks for row in shares.shares):
        raise ValueError("its token shares are not one for each noise level and block")
    if not shares.sigmas or list(shares.sigmas) != sorted(set(shares.sigmas)):
        raise ValueError("its noise levels do not rise")
    if not all(0 < share <= 1 for row in shares.shares for share in row):
        raise ValueError("its token shares are not between 0 and 1")
    return shares
