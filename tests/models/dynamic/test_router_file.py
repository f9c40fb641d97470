"""Router files: both layouts, under the prefixes they come with, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from interspatial.models.dynamic.router_file import MARK, read_router
from interspatial.models.dynamic.routers import TokenHead, TokenSelector
from interspatial.tests.models.dynamic.made import normal
from safetensors.torch import save_file

C = 32


def dydit(blocks: int = 2, heads: int = 3, groups: int = 8) -> dict[str, torch.Tensor]:
    tensors = {}
    for i in range(blocks):
        shapes = {"attn_rate.router": (heads - 1, C), "mlp_rate.router": (groups - 1, C),
                  "token_selection.mlp_head.0": (2, C), "token_selection.mlp_head.2": (1, 2)}  # fmt: skip
        for name, shape in shapes.items():
            tensors[f"blocks.{i}.{name}.weight"] = normal(*shape, seed=i)
            tensors[f"blocks.{i}.{name}.bias"] = normal(shape[0], seed=i + 1)
    return tensors


def dyflux(double: int = 2, single: int = 3) -> dict[str, torch.Tensor]:
    tensors = {}
    for stack, blocks in (("transformer_blocks", double), ("single_transformer_blocks", single)):
        for i in range(blocks):
            stem, mark = f"{stack}.{i}.token_selection", 100 * (stack[0] == "s") + i
            tensors[f"{stem}.linear_t.weight"], tensors[f"{stem}.linear_t.bias"] = torch.zeros(4 * C, C), torch.zeros(
                4 * C)
            tensors[f"{stem}.norm.weight"], tensors[f"{stem}.norm.bias"] = torch.ones(C), torch.zeros(C)
            tensors[f"{stem}.router.weight"], tensors[f"{stem}.router.bias"] = normal(1, C, seed=i), torch.full(
                (1,), float(mark))
    return tensors


def written(path, tensors, about=None):
    save_file(tensors, path, {MARK: json.dumps(about)} if about else None)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model."])
def test_dydit(tmp_path, prefix):
    tensors = dydit()
    renamed = {prefix + name: t for name, t in tensors.items()} | {prefix + "blocks.0.attn.qkv.weight": torch.ones(2)}
    file = read_router(written(tmp_path / "a.safetensors", renamed))
    assert (file.layout, len(file.routers), file.groups, file.shares, file.changes) == ("dydit", 2, 8, None, {})
    for i, router in enumerate(file.routers):
        assert torch.equal(router.heads.weight, tensors[f"blocks.{i}.attn_rate.router.weight"])
        assert torch.equal(router.groups.bias, tensors[f"blocks.{i}.mlp_rate.router.bias"])
        assert isinstance(router.tokens, TokenHead)
        assert torch.equal(router.tokens.second.weight, tensors[f"blocks.{i}.token_selection.mlp_head.2.weight"])


@pytest.mark.parametrize("own", [False, True])
def test_dyflux_under_both_names(tmp_path, own):
    tensors = dyflux()
    if own:
        tensors = {n.replace("single_transformer_", "single_").replace("transformer_", "double_"): t
                   for n, t in tensors.items()}  # fmt: skip
    file = read_router(written(tmp_path / "a.safetensors", {f"module.{n}": t for n, t in tensors.items()}))
    assert file.layout == "dyflux" and all(isinstance(router.tokens, TokenSelector) for router in file.routers)
    marks = [router.tokens.router.bias.item() for router in file.routers]
    assert marks == [0, 1, 100, 101, 102], "double blocks first"


def test_blocks_without_routers_compute_everything(tmp_path):
    tensors = {n: t for n, t in dydit(3).items() if not n.startswith("blocks.1.") and "blocks.2.attn" not in n}
    file = read_router(written(tmp_path / "a.safetensors", tensors))
    assert [bool(r.heads) for r in file.routers] == [True, False, False]
    assert [bool(r.groups) for r in file.routers] == [True, False, True]


def test_shares_and_changes(tmp_path):
    tensors = dydit() | {"diffusion_model.blocks.0.ffn.0.diff": torch.ones(2, 2)}
    about = {"version": 1, "sigmas": [0.0, 1.0], "shares": [[0.5, 0.25], [1.0, 0.75]]}
    file = read_router(written(tmp_path / "a.safetensors", tensors, about))
    assert file.shares.at(0.5) == (0.75, 0.5)
    assert list(file.changes) == ["diffusion_model.blocks.0.ffn.0.diff"]


def without(name):
    return {n: t for n, t in dydit().items() if n != name}


@pytest.mark.parametrize(("tensors", "about", "said"), [
    ({"weight": torch.ones(1)}, None, "it holds no router"),
    (without("blocks.1.mlp_rate.router.bias"), None, "is missing in it"),
    ({n: t for n, t in dydit().items() if "blocks.0.token_selection.mlp_head.2" not in n}, None, "token_selection"),
    (dydit() | {"blocks.1.mlp_rate.router.weight": torch.ones(3, C), "blocks.1.mlp_rate.router.bias": torch.ones(3)},
     None, "different numbers of MLP groups"),
    (dydit() | {"blocks.0.attn_rate.router.bias": torch.ones(5)}, None, "do not fit each other"),
    (dyflux() | {"transformer_blocks.1.token_selection.router.weight": torch.ones(1, 4)}, None, "do not fit"),
    ({n: t for n, t in dyflux().items() if not n.startswith("transformer_blocks.0")}, None, "no router for some"),
    (dydit(), {"version": 2}, "version 2"),
    (dydit(), {"version": 1, "sigmas": [0.5, 0.1], "shares": [[1, 1], [1, 1]]}, "do not rise"),
    (dydit(), {"version": 1, "sigmas": [0.5], "shares": [[1, 0]]}, "not between 0 and 1"),
    (dydit(), {"version": 1, "sigmas": [0.5], "shares": [[1, 1, 1]]}, "each noise level and block"),
])  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, tensors, about, said):
    path = written(tmp_path / "bad.safetensors", tensors, about)
    with pytest.raises(ValueError, match=said) as caught:
        read_router(path)
    assert "bad.safetensors" in str(caught.value) and "Accepted: safetensors" in str(caught.value)


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    torch.save({"module": dydit()}, tmp_path / "router.pt")
    said = r"its format may hold code that runs when it is opened.*safetensors\.torch\.save_file.*help page"
    with pytest.raises(ValueError, match=said):
        read_router(tmp_path / "router.pt")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be used"):
        read_router(tmp_path / "broken.safetensors")
