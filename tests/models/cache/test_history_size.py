"""The size of a cache's history, told before the run."""

from __future__ import annotations

import pytest
import torch
from interspatial.tests.models.cache.plan_runs import attached, cache, planned, run
from interspatial.tests.models.tinies import BY_NAME


@pytest.fixture(autouse=True)
def _comfy(comfy):
    pass


SIZED = [
    ("wan", "output"), ("wan", "last block"), ("wan", "modules"), ("ltxv", "modules"), ("wan_odd", "last block"),
    ("wan_bernini", "output"), ("ltxv", "last block"), ("ltxav", "output"), ("hunyuan_video", "last block"),
    ("cosmos", "last block"), ("cosmos_predict2", "last block"), ("kandinsky5", "last block"),
    ("cogvideox", "last block"), ("lumina2", "last block"), ("flux", "last block"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "site"), SIZED)
def test_the_history_is_as_large_as_the_plan_says(name, site, monkeypatch):
    """Text is part of the hidden states of some models; here its tokens are known."""
    from interspatial.models.cache.history_size import entry_bytes

    tiny = BY_NAME[name]
    model = attached(tiny.model(), cache(pace=("fixed", {"interval": 3}), first=2, last=1, site=site))
    plan = planned(model, steps=6, latent=tiny.samples())
    _, kept = run(model, tiny, monkeypatch, steps=6, cfg=3.0)
    text = tiny.text[0] if any(kind == "text" for kind, _ in tiny.segments) else 0
    assert kept == plan.entries * entry_bytes(plan.ahead, site, False, text) * 2
    assert plan.history(2) <= kept < plan.history(2) * 1.5, "the text of a tiny prompt is a tenth of its tokens"


def test_widths_of_real_models():
    """The width of a block is told by its layers, also where feed-forwards and attention have others."""
    import comfy.ldm.hunyuan_video.model as hunyuan
    import comfy.ldm.lightricks.model as lightricks
    import comfy.ldm.wan.model as wan
    import comfy.ops
    from interspatial.models.cache.history_size import width_of
    from interspatial.models.families import family_of

    on_nothing = {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    found = (
        (wan.WanModel(dim=5120, ffn_dim=13824, num_heads=40, num_layers=1, **on_nothing), 5120),
        (lightricks.LTXVModel(num_layers=1, **on_nothing), 2048),
        (hunyuan.HunyuanVideo(image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16,
                              vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0, num_heads=24,
                              depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=256, qkv_bias=True,
                              guidance_embed=True, byt5=False, meanflow=False, meanflow_sum=False,
                              use_cond_type_embedding=False, vision_in_dim=None, **on_nothing), 3072),
    )  # fmt: skip
    for model, width in found:
        assert width_of(model, family_of(model)) == width
