"""Runs of tiny models for tests of caches that work inside blocks: which blocks ran, and a run that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from interspatial.models.block_visits import blocks_of, covered
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.families import family_of
from interspatial.models.report import Card
from interspatial.tests.models.tinies import Tiny


def cached(model, method, pace=None, *, first: int = 1, last: int = 0):
    """A clone of `model` with a step cache."""
    from interspatial.models import host

    cache = StepCache(method, pace, first, last)
    return host.attach_step(model, Card("cache", "cache", skips="some blocks"), cache)


def report_of(model) -> str:
    """What the patches of `model` said after its last run."""
    from interspatial.models import host

    return host.report_of(model)


@contextmanager
def block_runs(model) -> Iterator[list[list[int]]]:
    """A list per forward of the model with the numbers of the blocks that ran in it."""
    inner = model.model.diffusion_model
    forwards: list[list[int]] = []

    def counting(index: int):
        def cover(forward):
            def run(*args, **kwargs):
                forwards[-1].append(index)
                return forward(*args, **kwargs)

            return run

        return cover

    def opening(forward):
        def run(*args, **kwargs):
            forwards.append([])
            return forward(*args, **kwargs)

        return run

    blocks = blocks_of(inner, family_of(inner))
    with covered([(inner, opening), *((block, counting(i)) for i, (block, _) in enumerate(blocks))]):
        yield forwards


def depth(model) -> int:
    """Blocks of all stacks."""
    inner = model.model.diffusion_model
    return len(blocks_of(inner, family_of(inner)))


def still(model, tiny: Tiny, *, steps: int = 4, cfg: float = 3.0, prompts: tuple | None = None,
          after: Callable[[], None] = lambda: None) -> list[torch.Tensor]:
    """The denoised latents of Euler steps at one sigma: every evaluation sees the same latent and the same noise.

    after: called after every step
    """
    import comfy.sample
    import comfy.samplers

    def note(step: int, denoised: torch.Tensor, *_) -> None:
        seen.append(torch.cat([x.flatten() for x in denoised.unbind()]) if denoised.is_nested else denoised.clone())
        after()

    seen: list[torch.Tensor] = []
    positive, negative = prompts or (tiny.prompt(1), tiny.prompt(2))
    latent = tiny.samples()
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.4)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, comfy.sample.prepare_noise(latent, 3), cfg, comfy.samplers.ksampler("euler"),
            torch.full((steps + 1,), sigma), positive, negative, latent, callback=note, disable_pbar=True,
            seed=3)  # fmt: skip
    return seen


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 in float64."""
    return float((got.double() - want.double()).norm() / want.double().norm())
