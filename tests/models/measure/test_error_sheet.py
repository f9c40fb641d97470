"""The meter's pictures: words that never collide, curves at their values, colours on the places they speak of."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from interspatial.models.measure import curves, error_sheet, error_table, looks_picture
from interspatial.models.measure.attention_error import MODEL, AttentionMeter, Findings, Place, Record
from interspatial.models.measure.canvas import to_tensor
from interspatial.models.measure.picture import MARGIN

METHODS = ["draft", "a method with quite a long name", *(f"method {i}" for i in range(9))]


def findings(methods=3, densities=(0.5, 0.3, 0.1), steps=(1, 4, 6), layers=(0, 2, 5), grid=(5, 8, 8), own=1e-7):
    draw = torch.Generator().manual_seed(methods + len(steps))
    found = Findings(grid=grid, tokens=400, heads=2, steps=20, layers=40)
    for step in steps:
        for layer in layers:
            found.records.append(Record(MODEL, None, step, layer, (own, own)))
            for i in range(methods):
                for density in densities:
                    error = (i + 1) * 0.02 * (1.1 - (density or 0.4)) * (1 + layer % 3)
                    errors = (error, 0.7 * error)
                    found.records.append(
                        Record(METHODS[i], density, step, layer, errors, (0.8, 0.9), density or 0.4, density or 0.4)
                    )
    for name in (None, *METHODS[:methods]):
        found.seen[name] = [torch.rand(grid, generator=draw).flatten() for _ in layers]
    found.query = torch.zeros(grid, dtype=torch.bool)
    found.query[grid[0] // 2, :2, :2] = True
    found.reasons["svg2", "an attention mask that has a long explanation " * 4] = 12
    return found


def check(canvas) -> None:
    rendered = canvas.render(MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"


CASES = {
    "usual": {},
    "one": {"methods": 1, "densities": (0.3,), "steps": (0,), "layers": (0,)},
    "many": {"methods": 11, "densities": (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, None), "steps": range(20),
             "layers": range(30)},
    "patched": {"own": 0.2},
    "auto": {"methods": 2, "densities": (None,)},
    "nothing": {"methods": 0},
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_nothing_collides_on_the_sheet_of_errors(case):
    found = findings(**case)
    check(error_sheet.lay_out(found, error_table.rows_of(found), error_table.describe(found, 256)))


@pytest.mark.parametrize("methods", [0, 11])
@pytest.mark.parametrize(("size", "grid"), [
    ((128, 128), (5, 8, 8)), ((480, 832), (21, 30, 52)), ((1280, 720), (1, 3, 2)), ((9, 2000), (2, 1, 9)),
])  # fmt: skip
def test_nothing_collides_on_the_sheet_of_looks(size, grid, methods):
    found = findings(methods, steps=(1,), layers=(0,), grid=grid)
    check(looks_picture.lay_out(found, torch.zeros(3, *size, 3), Place(), 0.3))


def test_the_sheets_are_images():
    found = findings()
    errors = error_sheet.draw_errors(found, error_table.rows_of(found), ["a line"])
    looks = looks_picture.draw_looks(found, torch.rand(17, 64, 64, 3), AttentionMeter((), found))
    for sheet in (errors, looks):
        assert sheet.shape[1:] == (900, 3) and sheet.min() >= 0 and sheet.max() <= 1
    assert torch.equal(errors, error_sheet.draw_errors(found, error_table.rows_of(found), ["a line"]))


# -------------------------------------------------------------------------------------------------------------- curves

@pytest.mark.parametrize(
    ("low", "high"), [(0.02, 0.4), (1e-5, 0.9), (0.1, 0.1), (0.05, 0.051), (0.003, 3.0), (1, 1000)]
)
def test_logarithmic_ticks_cover_the_range_and_are_few(low, high):
    ticks = curves.log_ticks(low, high)
    values = [value for value, _ in ticks]
    assert values[0] <= low * 1.001 and values[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 8 and values == sorted(set(values))
    assert [float(text) for _, text in ticks] == pytest.approx(values)


def test_equal_ratios_are_equal_distances():
    scale = curves.Scale(220, 0.01, 1.0, True)
    assert (scale.at(0.01), scale.at(0.1), scale.at(1.0)) == (10, 110, 210)
    assert scale.at(0.0) == scale.at(1e-9) == 10 and scale.at(50.0) == 210


def test_curves_are_drawn_at_their_values():
    up, across = curves.Scale(curves.HEIGHT, 0.01, 1.0, True), curves.Scale(300, 0.0, 1.0)
    curve = curves.Curve(((0.2, 0.5), (0.8, 0.02)), (200, 0, 0))
    drawn = to_tensor(curves._draw([curve], across, up, 0.1))
    for x, y in curve.points:
        assert torch.equal(drawn[curves.HEIGHT - up.at(y), across.at(x)], torch.tensor([200, 0, 0]) / 255)
    assert (drawn[curves.HEIGHT - up.at(0.1)].mean(-1) < 0.8).float().mean() > 0.3  # the dashes


# ---------------------------------------------------------------------------------------------------------------- maps

def test_cells_have_the_colours_of_the_scale():
    assert error_sheet.heat_of(error_sheet.LOW) == 0 and error_sheet.heat_of(0.0) == 0
    assert error_sheet.heat_of(1.0) == 1 and error_sheet.heat_of(7.0) == 1
    assert error_sheet.heat_of((error_sheet.LOW * 1.0) ** 0.5) == pytest.approx(0.5)
    drawn = to_tensor(error_sheet.cells([[error_sheet.LOW, 1.0], [float("nan"), 0.1]], (10, 10)))
    assert drawn[5, 5].tolist() == [0, 0, 0]
    assert drawn[5, 15].tolist() == pytest.approx([1, 248 / 255, 200 / 255])
    assert drawn[15, 5].min() > 0.9


def test_maps_show_the_middle_density_and_the_model_when_it_is_sparse():
    def words(found):
        canvas = error_sheet.lay_out(found, error_table.rows_of(found), [])
        return [text for _, text, *_ in canvas.words]

    assert "error by layer (down) and step (across), density 0.3" in words(findings())
    assert words(findings()).count(MODEL) == 1  # in the table alone
    assert words(findings(own=0.2)).count(MODEL) == 2


# --------------------------------------------------------------------------------------------------------------- looks

def test_colours_lie_on_the_tokens_they_speak_of():
    picture = looks_picture.to_pil(torch.full((40, 60, 1), 0.6))
    share = torch.zeros(4, 6)
    share[1, 2] = 1
    query = torch.zeros(4, 6, dtype=torch.bool)
    query[3, 5] = True
    drawn = to_tensor(looks_picture.overlay(picture, share, query))
    dark = drawn[5, 5]
    assert torch.allclose(dark, torch.full((3,), 0.3), atol=0.01)
    bright = (drawn - dark).abs().sum(-1) > 0.2
    assert bright[10:20, 20:30].all()
    bright[10:20, 20:30] = False
    bright[28:, 48:] = False  # the outline of the query
    assert not bright.any()
    assert drawn[30, 55].tolist() == pytest.approx([part / 255 for part in looks_picture.QUERY])
    assert torch.allclose(drawn[35, 55], dark)  # inside the outline
    marked = to_tensor(looks_picture.overlay(picture, share, query, (0, 1)))
    assert marked[5, 15].tolist() == pytest.approx([part / 255 for part in looks_picture.QUERY])
    assert torch.equal(marked[:, 20:], drawn[:, 20:])


@pytest.mark.parametrize(("count", "query", "room", "chosen"), [
    (5, 2, 5, [0, 1, 2, 3, 4]), (21, 3, 4, [3, 7, 13, 20]), (21, 20, 4, [0, 7, 13, 20]), (1, 0, 4, [0]), (9, 5, 1, [5]),
])  # fmt: skip
def test_the_frame_of_the_query_is_shown(count, query, room, chosen):
    assert looks_picture.choose_frames(count, query, room) == chosen


@pytest.mark.parametrize("shape", [(1, 16, 3, 4, 6), (2, 4, 5, 7), (1, 2, 1, 1, 1)])
def test_a_latent_makes_grey_pictures(shape):
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7 + 3
    frames = looks_picture.frames_of({"samples": samples}, None)
    assert frames.shape == (shape[2] if len(shape) == 5 else 1, *shape[-2:], 3)
    assert frames.min() >= 0 and frames.max() <= 1 and torch.equal(frames[..., 0], frames[..., 2])


def test_a_decoded_clip_is_one_batch_entry():
    class Vae:
        def decode(self, samples):
            return torch.zeros(*samples.shape[:1], 9, 32, 48, 3)

    assert looks_picture.frames_of({"samples": torch.zeros(2, 16, 3, 4, 6)}, Vae()).shape == (9, 32, 48, 3)
