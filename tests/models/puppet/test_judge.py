"""The judge: right on rendered truth it was never shown, wrong when the truth is bent, exact in its parts."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
import torch
from interspatial.models.puppet.judge import Verdict, component_sizes, hue_saturation_value, judge
from interspatial.models.puppet.scene import SHIRT_HUES, Prompt, random_scene, split_prompts
from interspatial.models.puppet.world import pose_scene
from torch import Tensor


def clip_of(prompt: Prompt, seed: int, frames: int = 9, fps: float = 8.0, side: int = 64) -> Tensor:
    """The length of a training clip, every second frame, half the size."""
    return pose_scene(prompt.scene(random.Random(seed)), frames, side, side, fps).rgb


def direction_of(prompt: Prompt) -> str:
    return prompt.action if prompt.action in ("left", "right") else "place"


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Prompt, Tensor]]:
    return [(prompt, clip_of(prompt, 1000 + i)) for i, prompt in enumerate(split_prompts()[1])]


@pytest.fixture(scope="module")
def walkers(held_out) -> list[tuple[Prompt, Tensor]]:
    found = [(prompt, clip) for prompt, clip in held_out if prompt.action in ("left", "right")]
    assert len(found) >= 10
    return found


def test_the_truth_is_judged_true(held_out):
    """58 of 60 for each question, 97 %."""
    verdicts = [(prompt, judge(clip)) for prompt, clip in held_out]
    assert len(verdicts) == 60
    for question, wanted in (("count", lambda p: p.count), ("shirt", lambda p: p.shirt), ("direction", direction_of)):
        wrong = [(p, v) for p, v in verdicts if getattr(v, question) != wanted(p)]
        assert len(wrong) <= 1, (question, wrong)


def test_a_mirrored_clip_goes_the_other_way(walkers):
    other = {"left": "right", "right": "left"}
    for prompt, clip in walkers:
        verdict = judge(clip.flip(2))
        assert verdict == Verdict(prompt.count, prompt.shirt, other[prompt.action])


def test_a_clip_played_backwards_goes_the_other_way(walkers):
    for prompt, clip in walkers:
        assert judge(clip.flip(0)).direction == {"left": "right", "right": "left"}[prompt.action]


def test_permuted_colours_are_another_shirt(held_out):
    """Red becomes green, green blue, blue red: all hues move by 120 degrees. Purple becomes orange, as skin is."""
    moved = {"red": "green", "green": "blue", "blue": "red", "yellow": "cyan", "cyan": "pink", "pink": "yellow"}
    for prompt, clip in held_out:
        seen = judge(clip[..., (2, 0, 1)]).shirt
        assert seen != prompt.shirt
        assert prompt.shirt == "purple" or seen == moved[prompt.shirt]


def test_half_a_picture_holds_fewer_puppets(held_out):
    for prompt, clip in held_out:
        if prompt.count == 3:
            assert judge(clip[:, :, :28]).count < 3


def test_noise_and_blur_do_not_fool_it(walkers):
    """What a small VAE does to a clip: blur by a pixel, and a little noise."""
    g = torch.Generator().manual_seed(0)
    for prompt, clip in walkers:
        soft = torch.nn.functional.avg_pool2d(clip.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
        verdict = judge((soft + 0.02 * torch.randn(soft.shape, generator=g)).clamp(0, 1))
        assert (verdict.shirt, verdict.direction) == (prompt.shirt, prompt.action)


def test_nobody_there():
    for ground_seed in (0, 1):
        clip = pose_scene(random_scene(ground_seed, puppets=0, balls=0), 3, 32, 32).rgb
        assert judge(clip) == Verdict(0, "", "place")
    assert judge(torch.rand(1, 8, 8, 1).expand(1, 8, 8, 3)) == Verdict(0, "", "place")


@pytest.mark.parametrize("name", list(SHIRT_HUES))
def test_painted_squares(name):
    """Two squares of a known colour, moving to the right by a known share of the width."""
    colour = torch.tensor(colorsys.hsv_to_rgb(SHIRT_HUES[name] / 360, 0.85, 0.8))
    for share, direction in ((0.3, "right"), (-0.3, "left"), (0.04, "place"), (-0.04, "place"), (0.08, "right")):
        clip = torch.full((11, 100, 100, 3), 0.7)
        for t in range(11):
            x = round(40 + 100 * share * t / 10)
            for y in (20, 60):
                clip[t, y : y + 10, x : x + 10] = colour
        assert judge(clip) == Verdict(2, name, direction), share


def test_specks_are_not_puppets():
    clip = torch.full((5, 100, 100, 3), 0.7)
    clip[:, 50:60, 50:60] = torch.tensor([0.8, 0.1, 0.1])
    clip[:, 10:13, 10:13] = torch.tensor([0.1, 0.8, 0.1])  # nine pixels, below 0.12 %
    assert judge(clip) == Verdict(1, "red", "place")


def test_skin_and_hair_are_not_cloth():
    clip = torch.full((5, 50, 50, 3), 0.7)
    clip[:, 10:40, 10:40] = torch.tensor([0.52, 0.30, 0.17])
    assert judge(clip).count == 0


def test_hue_saturation_value_is_colorsys():
    rgb = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.stack(hue_saturation_value(rgb), -1)
    theirs = torch.tensor([colorsys.rgb_to_hsv(*c) for c in rgb.tolist()], dtype=torch.float64)
    theirs[:, 0] *= 360
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    grey, saturation, value = hue_saturation_value(torch.tensor([[0.4, 0.4, 0.4], [0.0, 0.0, 0.0]]))
    assert saturation.tolist() == [0.0, 0.0] and value.tolist() == pytest.approx([0.4, 0.0]) and grey.isfinite().all()


def test_components_touch_at_corners_too():
    mask = torch.tensor(np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool))
    assert sorted(component_sizes(mask)) == [1, 2, 2]
    assert component_sizes(torch.zeros(3, 3, dtype=torch.bool)) == []
