"""What a refinement learns: what is kept, what is chosen, and that it comes nearer to the teacher."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.quant.codebook import nearest
from interspatial.models.quant.format import FORMATS, dense
from interspatial.models.quant.learned import SURE, LearnedLayer
from interspatial.models.quant.reconsider import DAMP, reconsidered
from interspatial.models.quant.refine import Effort, refine_block
from interspatial.models.quant.vq4 import numbers_of


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).double().square().sum() / truth.double().square().sum())


@pytest.fixture
def plain():
    return replace(FORMATS["vq4"], fit=False)


def teacher(seed: int = 0, rows: int = 24, tokens: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [rows, 64], and inputs [5, tokens, 64] whose channels are far from alike and from independent."""
    mix = drawn(64, 64, seed=seed + 1) * torch.logspace(0, -1.5, 64)
    return drawn(rows, 64, seed=seed), drawn(5, tokens, 64, seed=seed + 2) @ mix


@pytest.mark.parametrize("bits", [2, 3])
def test_what_is_not_learned_yet_is_the_file(plain, bits):
    weight = drawn(24, 64)
    coded = plain.encode(weight, bits)
    layer = LearnedLayer(coded, weight, drawn(24), 3)
    found = layer.result()
    assert torch.equal(found.codes, coded.codes)
    assert torch.allclose(dense(found), dense(coded), atol=1e-5)
    first = layer.choices.unflatten(0, (24, -1))
    assert torch.equal(first[..., 0], numbers_of(coded).long())
    assert all(len(row.unique()) == 3 for row in layer.choices)


def test_candidates_lie_near_the_weight(plain):
    """Feedback gives other vectors than the nearest; those near the weight are candidates all the same."""
    weight = drawn(24, 64)
    coded = plain.encode(weight, 2)
    other = replace(coded, codes=coded.codes.roll(1, 1))
    layer = LearnedLayer(other, weight, None, 2)
    wanted = torch.stack((numbers_of(other), numbers_of(coded)), -1).flatten(0, 1).long()
    moved = wanted[:, 0] != wanted[:, 1]
    assert moved.any() and torch.equal(layer.choices[moved], wanted[moved])


def test_the_surest_settle_first(plain):
    layer = LearnedLayer(plain.encode(drawn(8, 64), 2), drawn(8, 64), None, 2)
    with torch.no_grad():
        layer.logits.copy_(torch.stack((torch.zeros(128), torch.linspace(-4, 4, 128)), 1))
    layer.settle(0.25)
    settled = layer.logits.abs().amax(1) >= SURE
    assert settled.sum() == 32
    assert torch.equal(settled.nonzero().flatten(), torch.tensor([*range(16), *range(112, 128)]))
    assert layer.logits[0].argmax() == 0 and layer.logits[127].argmax() == 1
    layer.settle(1.0)
    assert (layer.logits.abs().amax(1) >= SURE).all()


@pytest.mark.parametrize(("name", "bits"), [("vq4", 2), ("vq4", 3), ("vidit_q", 4), ("rtn", 2)])
def test_a_layer_comes_nearer_to_the_teacher(name, bits):
    weight, x = teacher()
    truth = x @ weight.t() + 0.3
    form = replace(FORMATS["vq4"], fit=False) if name == "vq4" else FORMATS[name]
    layer = LearnedLayer(form.encode(weight, bits), weight, torch.zeros(24), 1)
    power = truth.square().mean()
    effort = Effort(120, book=1e-2, scale=1e-2, bias=2e-2)
    done = refine_block({"one": layer}, lambda i: (layer(x[i]) - truth[i]).square().mean() / power, 5, effort)
    found = x @ dense(done.weights["one"]).t() + done.biases["one"]
    assert done.after < (0.6 if name == "vq4" else 0.95) * done.before
    assert abs(relative(found, truth) - done.after) < 0.02 * done.before  # what is said is what is kept
    assert done.weights["one"].nbytes == layer.coded.nbytes


def test_the_choice_of_vectors_is_part_of_it(plain):
    """By candidates, as the paper has it; and by choosing again for what comes in, which is better."""
    weight, x = teacher(7, rows=128)  # many more groups than vectors
    truth, found = x @ weight.t(), {}
    for candidates, passes in ((1, 0), (2, 0), (1, 2)):
        layer = LearnedLayer(plain.encode(weight, 2), weight, None, candidates)
        error = lambda i, layer=layer: (layer(x[i]) - truth[i]).square().mean()  # noqa: E731
        effort = Effort(150, candidates, passes=passes, choice=0.1)
        found[candidates, passes] = refine_block({"one": layer}, error, 5, effort).after
    assert found[2, 0] < 0.95 * found[1, 0]
    assert found[1, 2] < 0.95 * found[2, 0]


def output_error(weight, numbers, book, scale, gram) -> torch.Tensor:
    """[N], of each row, in float64."""
    wrong = weight.double() - (book[numbers].flatten(1) * scale).double()
    return ((wrong @ gram.double()) * wrong).sum(1)


def test_reconsidered_against_all_combinations():
    """Two groups of four vectors: 16 combinations a row, with the damped gram that it is told to use."""
    weight, book, scale = drawn(40, 4), drawn(4, 2, seed=1), 0.5 + drawn(40, 1, seed=2).abs()
    mix = drawn(4, 4, seed=3)
    gram = mix.t() @ mix
    damped = gram + DAMP * gram.diagonal().mean() * torch.eye(4)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    errors = torch.stack([output_error(weight, pair.expand(40, 2), book, scale, damped) for pair in every])
    start = torch.randint(4, (40, 2), generator=torch.Generator().manual_seed(4))
    found = reconsidered(weight, start, book, scale, gram, 10)
    ours = output_error(weight, found, book, scale, damped)
    for j in (0, 1):  # no change of one group alone is any better
        for other in range(4):
            moved = found.clone()
            moved[:, j] = other
            assert (output_error(weight, moved, book, scale, damped) >= ours - 1e-6).all()
    assert (ours <= output_error(weight, start, book, scale, damped) + 1e-6).all()
    assert (ours - errors.amin(0) < 1e-6).float().mean() > 0.7


def test_with_channels_that_are_alike_and_independent_it_is_the_nearest():
    weight, book, scale = drawn(9, 24), drawn(16, 4, seed=1), torch.ones(9, 1)
    found = reconsidered(weight, torch.zeros(9, 6, dtype=torch.uint8), book, scale, torch.eye(24), 1)
    assert torch.equal(found.flatten(), nearest(weight.reshape(-1, 4), book))


def test_a_block_that_gets_worse_stays_what_it_was(plain):
    weight, x = teacher()
    coded = plain.encode(weight, 2)
    layer = LearnedLayer(coded, weight, torch.ones(24), 2)

    def misleading(i: int) -> torch.Tensor:
        away = torch.is_grad_enabled()
        return (layer(x[i]) - (100.0 if away else x[i] @ weight.t())).square().mean()

    done = refine_block({"one": layer}, misleading, 5, Effort(30, passes=0))
    assert done.after == done.before and done.weights["one"] is coded
    assert torch.equal(done.biases["one"], torch.ones(24))


def test_the_users_interrupt_ends_it(plain):
    weight, x = teacher()
    layer, seen = LearnedLayer(plain.encode(weight, 2), weight, None, 2), []

    def tick() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_block({"one": layer}, lambda i: layer(x[i]).square().mean(), 5, Effort(30), tick)
    assert len(seen) == 4
