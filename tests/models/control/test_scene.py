"""Scenes: what the network is given of them, and parts that do not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.control.scene import Background, Reference, Scene, conditions, folded_mask
from interspatial.models.nets.dit_config import DiTConfig
from interspatial.tests.models.tinies import peopled, walking

CONFIG = DiTConfig()


def made(scene: Scene, config: DiTConfig = CONFIG, size=(3, 8, 12)) -> dict:
    return conditions(scene, config, size, lambda latent: latent + 1)


def test_conditions_of_a_scene():
    found = made(peopled())
    assert found["body_place"].shape == (1, 3, 40, 3) and found["rays"].shape == (1, 24, 3, 4, 6)
    assert torch.equal(found["background"][:, :16], peopled().background.latent + 1)
    assert torch.equal(found["background"][:, 16:], torch.ones(1, 1, 3, 8, 12))
    assert torch.equal(found["reference"], peopled().reference.latent[:, :, 0] + 1)
    assert found["body_identity"][..., -1].sum() > 0
    nobody = made(peopled().unpeopled)
    assert set(nobody) == {"rays", "background"}
    unknown = made(replace(peopled(), reference=None))
    assert torch.equal(unknown["body_identity"], torch.zeros(1, 40, 17)) and "reference" not in unknown
    other = made(walking(), replace(CONFIG, depth_mode="none"))
    assert not other["body_place"][..., 2].any() and found["body_place"][..., 2].any()


def test_masks_fold_with_time():
    """A latent frame is given only where all of its pixel frames are."""
    mask = torch.ones(9, 64, 96)
    mask[0, :8], mask[3, :, :8], mask[6] = 0, 0, 0
    found = folded_mask(mask, (3, 8, 12), 4)[0, 0]
    assert not found[0, 0].any() and found[0, 1:].all()
    assert not found[1, :, 0].any() and found[1, :, 1:].all()
    assert not found[2].any()
    assert torch.equal(folded_mask(mask[3:4], (3, 8, 12), 4)[0, 0], found[1].expand(3, 8, 12))


@pytest.mark.parametrize(
    ("change", "config", "size", "says"),
    [
        ({}, {}, (4, 8, 12), "the latent has 4 frames, and the scene's 9 pixel frames make 3"),
        ({}, {}, (3, 8, 8), "another shape than the scene's picture of 96 x 64"),
        ({}, {"patch": 8}, (3, 8, 12), "multiples of 8"),
        ({"background": Background(torch.zeros(1, 16, 1, 8, 12))}, {}, (3, 8, 12), "repeat the frame"),
        ({"background": Background(torch.zeros(1, 4, 3, 8, 12))}, {}, (3, 8, 12), "Encode it with the model's own VAE"),
        ({"background": Background(torch.zeros(1, 16, 3, 8, 12), torch.ones(4, 8, 8))}, {}, (3, 8, 12), "accepted: 1,"),
        ({}, {"extra": 0}, (3, 8, 12), "takes no background"),
        ({}, {"identity": 0, "reference": 0}, (3, 8, 12), "trained without a reference view"),
    ],
)  # fmt: skip
def test_scenes_that_do_not_fit_are_refused(change, config, size, says):
    with pytest.raises(ValueError, match=says):
        made(replace(peopled(), **change), replace(CONFIG, **config), size)


def test_parts_of_a_scene_that_do_not_fit_are_refused():
    scene = walking()
    with pytest.raises(ValueError, match=r"the body has 5 frames and the camera 9.*Stretch or trim"):
        Scene(scene.camera, scene.body.at(slice(5)))
    with pytest.raises(ValueError, match=r"the reference shows 1 people of 20 points, the clip has 2 of 20"):
        replace(scene, reference=Reference(torch.zeros(1, 16, 1, 8, 12), walking(1, people=1).body))
