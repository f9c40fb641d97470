"""Will It Fit as a node."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.will_it_fit import WillItFit

    return WillItFit


@pytest.fixture
def model(comfy):
    from interspatial.tests.models.tiny_dits import wan

    return wan(dim=256, ffn_dim=1024, num_heads=2, num_layers=2)


def latent(frames: int = 5) -> dict:
    return {"samples": torch.zeros(1, 16, frames, 30, 52)}


def test_a_picture_and_a_report(node, model, inference):
    out = node.execute(model, latent(), card_gb=8)
    picture, report = out.args
    assert picture.ndim == 4 and picture.shape[-1] == 3 and picture.std() > 0.01
    lines = report.splitlines()
    assert lines[0].startswith("as loaded: fits: ")
    assert any(line.startswith("activations: ") and "up to 3900 tokens" in line for line in lines), "two prompts"
    assert {"ViDiT-Q 8-bit", "ViDiT-Q 4-bit"} <= {line.split("|")[1].strip() for line in lines if line.startswith("| ")}
    assert not any(line.startswith("| rtn") for line in lines), "the control is no advice"
    assert set(out.ui) >= {"images", "text"}


def test_a_format_is_what_the_table_says_of_it(node, model, inference):
    rows = node.execute(model, latent(), card_gb=8, format="ViDiT-Q 4-bit").args[1].splitlines()
    chosen = [row for row in rows if row.startswith("| ViDiT-Q 4-bit")]
    assert len(chosen) == 1 and rows[0].startswith("ViDiT-Q 4-bit: ")


def test_a_plan_comes_before_the_format(node, model, inference):
    from interspatial.models.quant.recipe import Choice, Recipe

    plan = SimpleNamespace(recipe=Recipe({"blocks.0.ffn.0": Choice("vidit_q", 8)}))
    report = node.execute(model, latent(), card_gb=8, plan=plan, format="ViDiT-Q 4-bit").args[1]
    assert report.startswith("plan: fits: ")
    foreign = SimpleNamespace(recipe=Recipe({"blocks.7.ffn.0": Choice("vidit_q", 8)}))
    with pytest.raises(ValueError, match=r"Will It Fit: the plan does not fit this model: there is no layer blocks\.7"):
        node.execute(model, latent(), card_gb=8, plan=foreign)


def test_a_small_card_is_told_what_to_do(node, model, inference):
    lines = node.execute(model, latent(61), card_gb=0.5).args[1].splitlines()
    assert lines[0].startswith("as loaded: does not fit: ")
    assert any(line.endswith("latent frames instead of 61 fit as a whole") for line in lines)


def test_a_machine_without_a_gpu_asks_for_a_size(node, model, inference):
    with pytest.raises(ValueError, match=r"Will It Fit: this machine has no GPU.*card_gb, 24 for example"):
        node.execute(model, latent())


def test_caches_count(node, model, inference):
    from interspatial.models import host
    from interspatial.models.cache import CACHES, StepCache
    from interspatial.models.report import Card

    cached = host.attach_step(model, Card("cache", "cache"), StepCache(CACHES["taylorseer"](order=1)))
    report = node.execute(cached, latent(), card_gb=8).args[1]
    assert "kept by caches: " in report and "kept by caches" not in node.execute(model, latent(), card_gb=8).args[1]


def test_a_model_that_cannot_be_followed_takes_comfyuis_estimate(node, comfy, inference):
    from interspatial.tests.models.tinies import BY_NAME

    tiny = BY_NAME["minimax_h3"]
    report = node.execute(tiny.model(), {"samples": tiny.samples()}, card_gb=8).args[1]
    assert "activations are ComfyUI's own estimate: MiniMaxH3Model cannot be followed" in report
