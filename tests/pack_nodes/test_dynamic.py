"""Load Dynamic Router as a node: files, what they change on a model, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interspatial.tests.models.tinies import BY_NAME, noise, sample
from interspatial.tests.models.tiny_dits import wan
from safetensors.torch import save_file

TINY = replace(BY_NAME["wan_odd"], model=lambda: wan(dim=256, num_heads=2))
WIDTH = 256


@pytest.fixture
def node(comfy):
    from interspatial.nodes.dynamic import LoadDynamicRouter

    return LoadDynamicRouter


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "dynamic_routers", raising=False)
    folder_paths.filename_list_cache.pop("dynamic_routers", None)
    (tmp_path / "dynamic_routers").mkdir()
    yield tmp_path / "dynamic_routers"
    folder_paths.filename_list_cache.pop("dynamic_routers", None)
    folder_paths.folder_names_and_paths.pop("dynamic_routers", None)


def routers(blocks: int = 2, bias: float = -1.0, width: int = WIDTH) -> dict[str, torch.Tensor]:
    shapes = {"attn_rate.router": (1, width), "mlp_rate.router": (7, width),
              "token_selection.mlp_head.0": (4, width), "token_selection.mlp_head.2": (1, 4)}  # fmt: skip
    tensors = {}
    for i in range(blocks):
        for name, (out, inside) in shapes.items():
            tensors[f"blocks.{i}.{name}.weight"] = 0.001 * noise(out, inside, seed=i)
            tensors[f"blocks.{i}.{name}.bias"] = torch.full((out,), bias)
    return tensors


def write(folder, tensors, shares=0.5, blocks=2, name="tiny.safetensors"):
    about = {"version": 1, "sigmas": [0.0, 1.0], "shares": [[shares] * blocks] * 2}
    save_file(tensors, folder / name, {"interspatial_dynamic_router": json.dumps(about)})
    return name


def loaded(node, *args, **kwargs):
    return node.execute(TINY.model(), *args, **kwargs).args[0]


def test_routers_of_a_file_run(node, folder):
    from interspatial.models import host
    from interspatial.models.host.router_files import router_files

    name = write(folder, routers())
    assert router_files() == [name]
    model = loaded(node, name)
    assert not torch.equal(sample(model, TINY), sample(TINY.model(), TINY))
    assert host.report_of(model) == "dynamic router 2/2 steps, heads 50 %, MLP 12 %, MLP tokens 50 %"
    model = loaded(node, name, token_share=0.25)
    sample(model, TINY)
    assert "MLP tokens 25 %" in host.report_of(model)


def test_routers_that_keep_everything_are_the_base(node, folder):
    model = loaded(node, write(folder, routers(bias=1.0), shares=1.0))
    assert torch.equal(sample(model, TINY), sample(TINY.model(), TINY))


def test_changes_of_the_weights_come_along(node, folder):
    """Whole differences, those of biases and of plain parameters, and pairs of factors: as in LoRA files."""
    stem, base = "diffusion_model.blocks.1.", TINY.model()
    up, down = noise(WIDTH, 2, seed=5), noise(2, WIDTH, seed=6)
    changes = {
        f"{stem}ffn.0.diff": 0.2 * noise(128, WIDTH, seed=1), f"{stem}ffn.0.diff_b": noise(128, seed=2),
        f"{stem}modulation.diff": noise(1, 6, WIDTH, seed=3),
        f"{stem}self_attn.q.lora_up.weight": up, f"{stem}self_attn.q.lora_down.weight": down,
    }  # fmt: skip
    model = loaded(node, write(folder, routers(bias=1.0) | changes, shares=1.0))
    by_hand = base.clone()
    by_hand.add_patches({
        f"{stem}ffn.0.weight": ("diff", (changes[f"{stem}ffn.0.diff"],)),
        f"{stem}ffn.0.bias": ("diff", (changes[f"{stem}ffn.0.diff_b"],)),
        f"{stem}modulation": ("diff", (changes[f"{stem}modulation.diff"],)),
        f"{stem}self_attn.q.weight": ("diff", (up @ down,)),
    }, 1.0)  # fmt: skip
    want = sample(by_hand, TINY)
    torch.testing.assert_close(sample(model, TINY), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(want, sample(base, TINY), atol=1e-3)


@pytest.mark.parametrize(("tensors", "said"), [
    (routers(3), "another number of blocks"),
    (routers(width=128), "other sizes"),
    (routers() | {"diffusion_model.blocks.7.ffn.0.diff": torch.ones(1, 1)}, "1 of its weights belong to no layer"),
])
def test_a_file_for_another_model_stops(node, folder, tensors, said):
    blocks = 3 if "blocks.2.mlp_rate.router.bias" in tensors else 2
    with pytest.raises(ValueError, match=rf"^Load Dynamic Router: tiny.safetensors does not fit this .*{said}"):
        loaded(node, write(folder, tensors, blocks=blocks))


def test_the_shipped_routers_fit_the_shipped_model(node):
    """And say much the same about a clip as the model alone."""
    import comfy.sd
    from interspatial.models import host

    root = Path(__file__).parents[2] / "checkpoints"
    host.register_folders(root)
    model = comfy.sd.load_diffusion_model(str(root / "diffusion_models" / "tiny_puppet_t2v.safetensors"))
    tiny = replace(TINY, latent=(1, 16, 5, 16, 16), text=(32, 128))
    dynamic = node.execute(model, "tiny_puppet_t2v.safetensors").args[0]
    plain, found = sample(model, tiny, steps=1), sample(dynamic, tiny, steps=1)
    assert float((found - plain).norm() / plain.norm()) < 0.5
    shares = dict(re.findall(r"(heads|MLP|MLP tokens) (\d+) %", host.report_of(dynamic)))
    assert all(20 < int(share) < 95 for share in shares.values()) and len(shares) == 3


def test_a_pickle_is_listed_and_refused(node, folder):
    from interspatial.models.host.router_files import router_files

    torch.save(routers(), folder / "old.pt")
    assert router_files() == ["old.pt"]
    with pytest.raises(ValueError, match="its format may hold code that runs when it is opened"):
        loaded(node, "old.pt")


def test_a_file_that_was_written_anew_is_read_anew(node, folder):
    name = write(folder, routers())
    before = node.fingerprint_inputs(name, token_share=0.0)
    assert node.fingerprint_inputs(name) == before
    write(folder, routers() | {"more": torch.ones(3)})
    assert node.fingerprint_inputs(name) != before


def test_with_a_cache_the_steps_that_run_are_the_lighter_ones(node, folder):
    from interspatial.models import host
    from interspatial.models.cache import CACHES, PACES, StepCache
    from interspatial.models.report import Card

    model = loaded(node, write(folder, routers()))
    cached = host.attach_step(model, Card("cache", "cache", skips="steps"),
                              StepCache(CACHES["taylorseer"](order=0), PACES["fixed"](2), 1, 0, "output"))  # fmt: skip
    assert sample(cached, TINY, steps=4).isfinite().all()
    assert "dynamic router 2/2 steps" in host.report_of(cached)


def test_with_sparse_attention(node, folder):
    """The attention call of the heads that are kept goes through the sparse method."""
    from interspatial.models import host
    from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
    from interspatial.models.report import Card

    model = loaded(node, write(folder, routers()))
    sparse = SparseAttention(METHODS["draft"](density=0.5), When(), Blocks("tile", 2))
    model = host.attach_attention(model, Card("sparse", "sparse"), sparse)
    assert sample(model, TINY).isfinite().all()
    report = host.report_of(model)
    assert "dynamic router 2/2 steps" in report and "sparse 2/2 layers" in report
