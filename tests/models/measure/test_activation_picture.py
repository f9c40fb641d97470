"""The picture and the words of activation statistics."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from interspatial.models.measure.activation_picture import by_role, describe, draw_activations, lay_out
from interspatial.models.measure.picture import MARGIN
from interspatial.models.quant.calibration import Calibration
from interspatial.models.quant.stats import LayerStats

WAN = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "ffn.0", "ffn.2")


def found_of(names, spread=1.0, bins=4, **about) -> Calibration:
    """Random statistics of these layers."""
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for name in names:
        peak = (spread * torch.randn(bins, 48, generator=draw)).exp()
        layers[name] = LayerStats(peak, peak.square() / 9)
    return Calibration(layers, {"model": "WanModel", "runs": 2, "tokens": [100] * bins, "unseen": [], **about})


def wan(blocks: int, **settings) -> Calibration:
    return found_of([f"blocks.{i}.{role}" for i in range(blocks) for role in WAN], **settings)


STACKS = [f"double_blocks.{i}.{stream}_attn.qkv" for i in range(3) for stream in ("img", "txt")]
STACKS += [f"single_blocks.{i}.linear1" for i in range(5)]
CASES = {
    "one block": wan(1), "two": wan(2), "forty": wan(40), "stacks": found_of(STACKS), "steep": wan(6, spread=6.0),
    "dead": found_of(["blocks.0.q", "blocks.1.q"], spread=0.0), "one bin": wan(3, bins=1, tokens=[7]),
    "words": wan(30, spread=4.0, tokens=[0, 9, 0, 9], unseen=[f"blocks.{i}.face.linear1_kv" for i in range(30)]),
}
CASES["dead"].layers["blocks.1.q"].peak.zero_()
CASES["dead"].layers["blocks.1.q"].power.zero_()


@pytest.mark.parametrize("case", CASES)
def test_nothing_collides_and_nothing_leaves_the_sheet(case):
    found = CASES[case]
    canvas = lay_out(found, describe(found))
    rendered = canvas.render(MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"
    sheet = draw_activations(found, [])
    assert sheet.shape[2] == 3 and sheet.isfinite().all()


def test_stacks_are_counted_on_and_roles_that_read_the_same_are_one():
    assert [list(each) for each in by_role(CASES["stacks"]).values()] == [[0, 1, 2], [0, 1, 2], [3, 4, 5, 6, 7]]
    found = wan(2)
    for i in range(2):
        for role in "kv":
            found.layers[f"blocks.{i}.self_attn.{role}"] = found.layers[f"blocks.{i}.self_attn.q"]
    assert list(by_role(found)) == ["self_attn.q k v", "self_attn.o", "cross_attn.q", "ffn.0", "ffn.2"]
    found.layers["blocks.1.self_attn.v"] = found.layers["blocks.1.ffn.0"]
    assert list(by_role(found))[:2] == ["self_attn.q k", "self_attn.v"], "alike in every block, or not alike"


def test_salient_channels_are_named():
    found = wan(6, spread=0.1)
    assert "no layer has salient channels" in describe(found)[1]
    peak = found.layers["blocks.4.ffn.2"].peak
    peak[2, 17], peak[0, 3] = 50.0, 90.0
    text = "\n".join(describe(found))
    assert "channels above 30 times the median in 1 of 42 layers:" in text
    assert "blocks.4.ffn.2: " in text and "channels 3, 17" in text


def test_what_is_missing_is_said():
    text = "\n".join(describe(CASES["words"]))
    assert "no step fell into 0 to 25 %, 50 to 75 % of the noise range" in text
    assert "never ran, and without statistics: blocks.0.face.linear1_kv" in text and "and 22 more" in text
