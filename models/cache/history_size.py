"""Bytes of what a step cache keeps, told before the run by the sizes of model and latent."""
# N tokens   D width of the hidden states

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from torch import nn

from ..block_visits import blocks_of
from ..families import Family, Inputs
from ..layout import TokenLayout

if TYPE_CHECKING:
    from ..host.rehearsal import Ahead

OUTPUT_ITEM = 4   # bytes: outputs are kept in fp32


def entry_bytes(ahead: Ahead, site: str, blocks: bool, text: int = 0) -> int | None:
    """Bytes of one kept output of one prompt, None when it cannot be told.

    site: where forecasts are put back    blocks: the method keeps hidden states, whatever the site
    text: tokens of the text; it is part of the hidden states of some models, and small beside the video
    """
    if not ahead.shapes:
        return None
    if site == "output" and not blocks:
        return OUTPUT_ITEM * sum(math.prod(shape) for shape in ahead.shapes)
    family, network = ahead.family, ahead.network
    layout = family and family.layout(inputs_of(ahead, text))
    if not isinstance(layout, TokenLayout):
        return None
    states = ahead.shapes[0][0] * layout.tokens * width_of(network, family) * ahead.item
    return states * (modules_of(network, family) if site == "modules" and not blocks else 1)


def inputs_of(ahead: Ahead, text: int = 0) -> Inputs:
    """What is known of a forward before the run: its sizes. References and guides come with the prompt.

    Where the latent is not known, it is one number.
    """
    video, *sound = ahead.shapes or ((1, 1, 1, 1, 1),)
    video = video if len(video) == 5 else (*video[:2], 1, *video[2:])
    return Inputs(ahead.network, video, text, sound[0] if sound else None)


def width_of(network: nn.Module, family: Family) -> int:
    """D: what most linear layers of a block take in."""
    block = blocks_of(network, family)[-1][0]
    takes = Counter(module.in_features for module in block.modules() if isinstance(module, nn.Linear))
    return takes.most_common(1)[0][0]


def modules_of(network: nn.Module, family: Family) -> int:
    """Parts of all blocks that a cache of single modules keeps an output of."""
    return sum(
        getattr(block, name, None) is not None for block, _ in blocks_of(network, family) for name in family.modules
    )
