"""Sliced heads and groups and gathered tokens on Wan: the same as computing everything and masking it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from interspatial.models.report import Card
from interspatial.tests.models.dynamic.made import dydit, normal
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import wan

WIDTH, HEADS, GROUPS = 384, 3, 8
HEAD_ON, GROUP_ON = [False, True], [True, False, False, True, False, True, False]
KEPT_HEADS, KEPT_GROUPS = (0, 2), (0, 1, 4, 6)
TINY = replace(BY_NAME["wan_odd"], model=lambda: wan(dim=WIDTH, num_heads=HEADS))


@pytest.fixture
def base(comfy):
    return TINY.model()


def dynamic(model, file, share=None):
    from interspatial.models import host
    from interspatial.models.dynamic.dynamic_model import DynamicModel

    return host.attach_step(model, Card("dynamic", "dynamic"), DynamicModel(file, share))


def network(model):
    return model.get_model_object("diffusion_model")


def router(heads=HEAD_ON, groups=GROUP_ON, tokens=True, blocks=2):
    return dydit(blocks, WIDTH, heads, groups, tokens)


@contextmanager
def masked(module, file, share: float):
    """Everything is computed by the model's own layers, and masks are multiplied in."""
    from interspatial.models.block_visits import covered

    heads = torch.zeros(WIDTH)
    for head in KEPT_HEADS:
        heads[head * 128 : (head + 1) * 128] = 1.0
    groups = torch.zeros(module.ffn_dim)
    size = module.ffn_dim // GROUPS
    for group in KEPT_GROUPS:
        groups[group * size : (group + 1) * size] = 1.0
    pairs = []
    for block, own in zip(module.blocks, file.routers, strict=True):
        attention, seen = block.self_attn, {}

        def normed(forward, layer):
            def norm(x):
                mean = (x.double().square() * heads).sum(-1, keepdim=True) / heads.sum()
                return (x.double() * (mean + layer.eps).rsqrt() * layer.weight).float()

            return norm

        def see(forward, own=own, seen=seen):
            def norm2(x):
                logits = own.tokens.logits(x)
                rank = logits.argsort(-1, descending=True).argsort(-1)
                seen["mask"] = (rank < round(share * x.shape[1])).float()
                return forward(x)

            return norm2

        pairs += [
            (attention.norm_q, lambda f, layer=attention.norm_q: normed(f, layer)),
            (attention.norm_k, lambda f, layer=attention.norm_k: normed(f, layer)),
            (attention.o, lambda f: lambda x: f(x * heads)),
            (block.ffn[0], lambda f: lambda x: f(x) * groups),
            (block.ffn, lambda f, seen=seen: lambda x: f(x) * seen["mask"][..., None]),
            (block.norm2, see),
        ]
    with covered(pairs):
        yield


def close(a, b):
    assert float((a.double() - b.double()).norm() / b.double().norm()) < 1e-5


def test_slices_are_the_masks(base, poisoned):
    file = router()
    with masked(network(base), file, 0.5):
        want = sample(base, TINY)
    found = sample(dynamic(base, file, 0.5), TINY)
    close(found, want)
    assert float((want - sample(base, TINY)).norm() / want.norm()) > 1e-3, "the masks matter"


@pytest.mark.parametrize("file", [
    router([True, True], [True] * 7), router([True, True], [], tokens=False), router([], [True] * 7)])
def test_everything_kept_is_every_bit_of_the_base(base, file):
    model = dynamic(base, file, 1.0)
    assert torch.equal(sample(model, TINY), sample(base, TINY))
    from interspatial.models import host

    assert "2/2 steps" in host.report_of(model) and "100 %" in host.report_of(model)


def test_prompts_together_and_apart(base):
    """Guidance runs prompts of one length as a batch, others one by one."""
    model = dynamic(base, router(), 0.3)
    positive, negative = TINY.prompt(1), TINY.prompt(2)
    batched = sample(model, TINY, cfg=3.0, prompts=(positive, negative))
    apart = TINY.prompt(2)
    apart[0][1]["area"] = (7, 11, 0, 0)   # of its own, so that ComfyUI does not batch it
    close(sample(model, TINY, cfg=3.0, prompts=(positive, apart)), batched)


def test_loras_count(base):
    file, lora = router(), base.clone()
    change = 0.3 * normal(128, WIDTH, seed=4)
    lora.add_patches({"diffusion_model.blocks.1.ffn.0.weight": ("diff", (change,))}, 1.0)
    with masked(network(base), file, 0.5):
        want = sample(lora, TINY)
    close(sample(dynamic(lora, file, 0.5), TINY), want)
    plain = sample(dynamic(base, file, 0.5), TINY)
    assert float((want - plain).norm() / plain.norm()) > 1e-3, "the LoRA matters"


def test_weights_that_are_changed_on_the_fly(base):
    """As ComfyUI applies LoRAs to weights that are streamed in."""
    from interspatial.models.dynamic.width import channels, columns, norm, rows

    block = network(base).blocks[0]
    x, few = normal(2, 5, WIDTH, seed=1), channels(KEPT_HEADS, 128, torch.device("cpu"))
    layer = block.self_attn.o
    layer.weight_function = [lambda w: 3 * w]
    layer.bias_function = [lambda b: b + 1]
    try:
        full = layer(x)
        torch.testing.assert_close(rows(layer, few)(None)(x), full[..., few])
        inside = torch.zeros_like(x)
        inside[..., few] = x[..., few]
        torch.testing.assert_close(columns(layer, few)(None)(x[..., few]), layer(inside))
    finally:
        layer.weight_function, layer.bias_function = [], []
    scale = block.self_attn.norm_q.weight[few].double()
    want = x[..., few].double()
    want = want / (want.square().mean(-1, keepdim=True) + block.self_attn.eps).sqrt() * scale
    found = norm(block.self_attn.norm_q, few)(None)(x[..., few])
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)


def test_neighbouring_channels_are_a_view(comfy):
    from interspatial.models.dynamic.width import channels, part

    weight = normal(12, 4, seed=0)
    assert part(weight, channels((1, 2), 3, weight.device), 0).data_ptr() == weight[3].data_ptr()
    assert torch.equal(part(weight, channels((0, 3), 1, weight.device), 1), weight[:, [0, 3]])
    assert torch.equal(part(weight, channels((0, 2), 3, weight.device), 0), weight[[0, 1, 2, 6, 7, 8]])


def test_an_index_is_made_once(comfy):
    from interspatial.models.dynamic.width import Cuts

    cut = Cuts(torch.device("cpu"))
    assert cut((0, 2), 4) is cut((0, 2), 4)
    assert cut((0, 2), 4).tolist() == [0, 1, 2, 3, 8, 9, 10, 11] and cut((0, 2), 2).tolist() == [0, 1, 4, 5]


def test_attention_hooks_see_fewer_heads(base):
    seen = []

    def act(call):
        seen.append((call.q.shape[2], call.layout.tokens))
        return call.dense()

    model = dynamic(attach(base, "ours", "sparse", [], act), router(), 0.5)
    sample(model, TINY, steps=1)
    assert seen == [(2, 48)] * 2


def test_the_model_is_left_as_it_was(base):
    class BoomError(RuntimeError):
        pass

    def act(call):
        raise BoomError

    with pytest.raises(BoomError):
        sample(dynamic(attach(base, "ours", "sparse", [], act), router(), 0.5), TINY)
    module = network(base)
    assert all("forward" not in vars(layer) for layer in module.modules())
    assert all(block.self_attn.num_heads == HEADS for block in module.blocks)


def test_plans_ahead_are_those_of_each_step(comfy):
    """Masks of the whole schedule, made before the first step, against the embedding of each running step (T10)."""
    from comfy.samplers import calculate_sigmas
    from interspatial.models.dynamic.dynamic_model import DynamicModel, Memory
    from interspatial.models.dynamic.router_file import RouterFile
    from interspatial.models.dynamic.routers import Affine, BlockRouter, kept
    from interspatial.models.dynamic.width import Cuts
    from interspatial.models.schedule import Position, Schedule

    module, plain = network(TINY.model()), TINY.model()
    routers = tuple(BlockRouter(Affine(normal(2, WIDTH, seed=i), torch.zeros(2)),
                                Affine(normal(7, WIDTH, seed=9 + i), torch.zeros(7))) for i in range(2))  # fmt: skip
    seen = []
    handle = module.time_embedding.register_forward_hook(lambda m, x, e: seen.append(e.clone()))
    try:
        sample(plain, TINY, steps=5)
    finally:
        handle.remove()
    sigmas = calculate_sigmas(plain.get_model_object("model_sampling"), "simple", 5).tolist()
    schedule, memory = Schedule(sigmas, lambda p: 1 - p), Memory(list(routers), Cuts(torch.device("cpu")))
    model, found = DynamicModel(RouterFile("dydit", routers, 8)), []
    for step, sigma in enumerate(sigmas[:-1]):
        place = Position(step, 5, 0, sigma, 0.0)
        found.append(model.plan(memory, module, schedule, place, torch.device("cpu")))
        assert len(memory.plans) == 5, "all at once"
    for step, e in enumerate(seen):
        for i, router_ in enumerate(routers):
            assert kept(router_.heads, e)[0] == found[step][i].heads
            assert kept(router_.groups, e)[0] == found[step][i].groups
    assert len({plan for level in found for plan in level}) > 2, "they differ"
    place = Position(1, 5, 1, 0.5 * (sigmas[1] + sigmas[2]), 0.0)
    between = model.plan(memory, module, schedule, place, torch.device("cpu"))
    assert len(between) == 2 and len(memory.plans) == 6


def test_stands_aside(base):
    from comfy.patcher_extension import WrappersMP
    from interspatial.models import host

    plain = sample(base, TINY)
    model = dynamic(base, router(), 0.5)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k))
    assert torch.equal(sample(model, TINY), plain)
    assert "unpatched: torch.compile is at work" in host.report_of(model)
    unfit = ((router(blocks=3), "another number of blocks"), (dydit(2, 128, [], [True] * 7), "other sizes"),
             (router(groups=[True] * 6), "cannot be cut"), (router(heads=[True]), "other sizes"))  # fmt: skip
    for file, said in unfit:
        model = dynamic(base, file, 0.5)
        assert torch.equal(sample(model, TINY), plain)
        assert said in host.report_of(model)


def test_weights_that_cannot_be_cut(base):
    from interspatial.models import host

    layer, model = network(base).blocks[1].ffn[2], dynamic(base, router(), 0.5)
    layer.forward = layer.forward
    try:
        sample(model, TINY)
    finally:
        del layer.forward
    assert "another patch replaces single layers" in host.report_of(model)
    before = layer.weight
    layer.weight = torch.nn.Parameter(before.to(torch.float8_e4m3fn), requires_grad=False)
    try:
        from interspatial.models.host.layers import why_not_sliced

        assert "quantised" in why_not_sliced(layer)
        layer.weight = before
        assert why_not_sliced(layer) is None
        assert "not ComfyUI's own" in why_not_sliced(torch.nn.Linear(2, 2))
    finally:
        layer.weight = before


def test_another_family_stands_aside(comfy):
    from interspatial.models import host

    tiny = BY_NAME["mochi"]
    plain = sample(tiny.model(), tiny, steps=1)
    model = dynamic(tiny.model(), router(), 0.5)
    assert torch.equal(sample(model, tiny, steps=1), plain)
    assert "another kind of model" in host.report_of(model)
