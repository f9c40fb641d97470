"""Bodies as tokens. Numbers in names are those of section 2.12 of the plan."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from interspatial.models.control.body import together
from interspatial.models.control.time_folding import latent_frames, sub_frames
from interspatial.models.control.tokens import PEOPLE, body_tokens, front, middle
from interspatial.tests.models.control.made import hold, random_body


@pytest.mark.parametrize("stride", [4, 8])
def test_6_tokens_of_a_window_are_the_slice_of_all(stride):
    tokens = body_tokens(random_body(2, 33), hold(33), stride)
    window = tokens.window([1, 2, 4])
    for name in ("place", "usable", "content"):
        assert torch.equal(getattr(window, name), getattr(tokens, name)[[1, 2, 4]])
    assert torch.equal(window.person, tokens.person)
    cut = body_tokens(random_body(2, 33).at(slice(0, 2 * stride + 1)), hold(2 * stride + 1), stride,
                      planes=None)  # fmt: skip
    assert torch.equal(cut.content, tokens.content[:3]), "contents do not depend on the rest of the clip"


@pytest.mark.parametrize(("stride", "wanted"), [
    (4, [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]), (8, [[0, 0, 0, 0], [2, 4, 6, 8], [10, 12, 14, 16]]),
    (1, [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]])])  # fmt: skip
def test_sub_frames_end_with_the_last_frame_of_their_group(stride, wanted):
    assert sub_frames(3, stride).tolist() == wanted
    assert latent_frames(2 * stride + 1, stride) == 3


def test_places_are_those_of_the_last_frame_of_a_group(poisoned):
    body = random_body(1, 9, 4)
    tokens = body_tokens(body, hold(9), 4)
    for latent, frame in enumerate((0, 4, 8)):
        alone = body_tokens(replace(body.at(slice(frame, frame + 1))), hold(1), 4, "none")
        assert torch.equal(tokens.place[latent, :, :2], alone.place[0, :, :2])
        centred = body.points[0, frame] - middle(body)
        torch.testing.assert_close(tokens.content[latent, :, -1], centred)
    assert tokens.content.shape == (3, 4, 4, 3)


def test_people_are_side_by_side_and_the_ninth_has_the_first_slot():
    one = random_body(1)
    crowd = together([one] * (PEOPLE + 1))
    tokens = body_tokens(crowd, hold(9), 4)
    n = one.points.shape[2]
    assert tokens.person.view(-1, n)[:, 0].tolist() == [*range(PEOPLE), 0]
    assert torch.equal(tokens.part.view(-1, n)[3], one.part)


def test_unknown_points_say_nothing(poisoned):
    body = random_body(1, 9, 6)
    hidden = replace(body, known=body.known & (torch.arange(6) != 2))
    poison = hidden.points.clone()
    poison[:, :, 2] = float("nan")
    found, wanted = (body_tokens(b, hold(9), 4) for b in (replace(hidden, points=poison), hidden))
    assert not found.usable[:, 2].any()
    for field in fields(found):
        x, y = (getattr(t, field.name) for t in (found, wanted))
        if field.name == "content":   # what stands there is never read, but it is a number
            assert x.isfinite().all()
        elif x is not None:
            assert torch.equal(x, y)


def test_bodies_and_cameras_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="9 frames and the camera 8"):
        body_tokens(random_body(1, 9), hold(8), 4)


def test_what_is_behind_is_not_in_front():
    body = random_body(1, 1, 3)
    body = replace(body, points=torch.tensor([[0.0, 0, 0.5], [0, 0, -0.5], [0.9, 0.9, -0.5]])[None, None])
    assert front(body, hold(1)).flatten().tolist() == [True, False, True]
