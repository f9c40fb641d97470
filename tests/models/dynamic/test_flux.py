"""DyFLUX's tokens on ComfyUI's Flux blocks: the same as computing everything and masking it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from interspatial.models.dynamic.router_file import RouterFile
from interspatial.models.dynamic.routers import BlockRouter
from interspatial.models.report import Card
from interspatial.tests.models.dynamic.made import selector
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample

WIDTH, SHARE = 128, 0.4
FILE = RouterFile("dyflux", tuple(BlockRouter(tokens=selector(WIDTH, 10 * i)) for i in range(3)))


@pytest.fixture(params=["flux", "flux_reference"])
def tiny(comfy, request):
    return BY_NAME[request.param]


def dynamic(model, share=SHARE, file=FILE):
    from interspatial.models import host
    from interspatial.models.dynamic.dynamic_model import DynamicModel

    return host.attach_step(model, Card("dynamic", "dynamic"), DynamicModel(file, share))


def network(model):
    return model.get_model_object("diffusion_model")


def top(logits: torch.Tensor, share: float) -> torch.Tensor:
    """1 for the share of tokens with the highest logits, rounded up. [B, N] -> [B, N, 1]"""
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return (rank < -(-share * logits.shape[1] // 1)).float()[..., None]


@contextmanager
def masked(module, share: float):
    """Everything is computed, and masks are multiplied onto what the block adds."""
    from interspatial.models.block_visits import covered

    seen, pairs = {}, []

    def see(name):
        return lambda forward: lambda x: (seen.__setitem__(name, x.clone()), forward(x))[1]

    def double(own):
        def cover(forward):
            return lambda x: forward(x) * top(own.tokens.logits(seen["image"], seen["text"], seen["vec"]), share)

        return cover

    def single(own):
        def cover(forward):
            def linear2(x):
                words = seen["text"].shape[1]
                logits = own.tokens.logits(seen["joint"][:, words:], seen["joint"][:, :words], seen["vec"])
                return forward(x) * torch.cat((torch.ones(len(x), words, 1), top(logits, share)), 1)

            return linear2

        return cover

    for block, own in zip(module.double_blocks, FILE.routers, strict=False):
        pairs += [(block.img_mod, see("vec")), (block.txt_norm1, see("text")), (block.img_norm2, see("image")),
                  (block.img_mlp, double(own))]  # fmt: skip
    for block, own in zip(module.single_blocks, FILE.routers[len(module.double_blocks) :], strict=True):
        pairs += [(block.modulation, see("vec")), (block.pre_norm, see("joint")), (block.linear2, single(own))]
    with covered(pairs):
        yield


def close(a, b):
    assert float((a.double() - b.double()).norm() / b.double().norm()) < 1e-5


def test_gathered_tokens_are_the_masks(tiny, poisoned):
    base = tiny.model()
    with masked(network(base), SHARE):
        want = sample(base, tiny)
    close(sample(dynamic(base), tiny), want)
    plain = sample(base, tiny)
    assert float((want - plain).norm() / plain.norm()) > 1e-4, "the masks matter"


def test_all_tokens_are_every_bit_of_the_base(tiny):
    assert torch.equal(sample(dynamic(tiny.model(), 1.0), tiny), sample(tiny.model(), tiny))


def test_clips_of_a_batch_choose_for_themselves(comfy):
    """Two in a batch, of which one is what it is alone."""
    tiny = BY_NAME["flux"]
    latent = torch.cat([tiny.samples() + 0.5, tiny.samples() - 0.5])
    both = sample(dynamic(tiny.model()), tiny, latent=latent, cfg=3.0)
    with masked(network(tiny.model()), SHARE):
        close(both, sample(tiny.model(), tiny, latent=latent, cfg=3.0))


def test_the_schedule_of_a_file_without_shares(comfy):
    from interspatial.models import host

    tiny = BY_NAME["flux"]
    model = dynamic(tiny.model(), None)
    sample(model, tiny, steps=10)
    # simple steps at 0, 10 ... 90 %: all tokens in the first two, 60 % in seven, 80 % in the last
    assert "MLP tokens 70 %" in host.report_of(model)


def test_attention_sees_all_tokens(comfy):
    tiny, seen = BY_NAME["flux"], []

    def act(call):
        seen.append(call.q.shape[1])
        return call.dense()

    sample(dynamic(attach(tiny.model(), "ours", "sparse", [], act)), tiny, steps=1)
    assert seen == [7 + 24] * 3


@pytest.mark.parametrize(("file", "said"), [
    (RouterFile("dyflux", FILE.routers[:2]), "another number of blocks"),
    (RouterFile("dyflux", (BlockRouter(tokens=selector(64)),) * 3), "other sizes"),
    (RouterFile("dydit", (BlockRouter(),) * 3), "another kind of model"),
])
def test_files_that_do_not_fit_change_nothing(comfy, file, said):
    from interspatial.models import host

    tiny = BY_NAME["flux"]
    model = dynamic(tiny.model(), 0.5, file)
    assert torch.equal(sample(model, tiny), sample(tiny.model(), tiny))
    assert said in host.report_of(model)


def test_the_model_is_left_as_it_was(comfy):
    tiny = BY_NAME["flux"]
    model = tiny.model()
    sample(dynamic(model), tiny, steps=1)
    assert all("forward" not in vars(layer) for layer in network(model).modules())
