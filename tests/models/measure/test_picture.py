"""The comparison sheet: sizes, words that never collide, colours that mean what the scale says."""

import math
from itertools import combinations

import pytest
import torch
from interspatial.models.measure import picture, plot
from interspatial.models.measure.canvas import cut, font, text_width, to_pil, to_tensor, wrap
from interspatial.models.measure.metrics import compare

REPORT = ["one line", "a line that is longer than any sheet is wide: " + "words and words " * 20]
NAMES = ("dense", "sparse")


def clips(frames, height, width, noise=0.05, channels=3):
    g = torch.Generator().manual_seed(frames * height + width)
    reference = torch.rand(frames, height, width, channels, generator=g)
    return reference, (reference + noise * torch.randn(reference.shape, generator=g)).clamp(0, 1)


def sheet(frames, height, width, names=NAMES, gain=8.0, shown=3, noise=0.05):
    reference, test = clips(frames, height, width, noise)
    return picture.lay_out(reference, test, compare(reference, test), names, REPORT, gain, shown)


# frames, height, width, shown, gain
CASES = [
    (33, 128, 128, 3, 8.0), (3, 64, 40, 1, 1.0), (81, 60, 104, 8, 30.0), (3, 1, 1, 3, 255.0), (700, 8, 300, 5, 2.5)
]


@pytest.mark.parametrize(("frames", "height", "width", "shown", "gain"), CASES)
@pytest.mark.parametrize("noise", [0.05, 0.0], ids=["different", "identical"])
def test_nothing_collides_and_nothing_leaves_the_sheet(frames, height, width, shown, gain, noise):
    canvas = sheet(frames, height, width, (NAMES[0], "a long name " * 40), gain, shown, noise)
    rendered = canvas.render(picture.MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"


def test_the_drawn_letters_stay_inside_their_boxes():
    canvas = sheet(9, 32, 32)
    for box, text, size, _ in canvas.words:
        left, top, right, bottom = font(size).getbbox(text)
        assert left >= -1 and box[0] + right <= box[2] + 1   # letters lean out by less than a pixel
        assert top >= 0 and box[1] + bottom <= box[3]


def test_it_is_a_finite_image_and_the_same_each_time():
    reference, test = clips(5, 24, 20)
    found = compare(reference, test)
    first, second = (picture.draw_comparison(reference, test, found, NAMES, REPORT) for _ in range(2))
    assert first.shape[-1] == 3 and first.shape[1] >= picture.LEAST_WIDTH
    assert first.isfinite().all() and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, second)


@pytest.mark.parametrize(("height", "width", "size"), [
    (64, 64, (256, 256)), (128, 128, (256, 256)), (64, 96, (288, 192)), (100, 70, (210, 300)),   # whole multiples
    (256, 200, (200, 256)), (480, 832, (384, 222)), (1080, 1920, (384, 216)), (1, 5000, (384, 1)),
])
def test_shown_size(height, width, size):
    assert picture.shown_size(height, width) == size


def test_small_frames_are_enlarged_in_squares():
    frame = clips(3, 4, 6)[0][0]
    shown = to_tensor(picture.resize(to_pil(frame), (60, 40)))
    assert torch.equal(shown[5::10, 5::10], to_tensor(to_pil(frame)))
    assert torch.equal(shown[::10, ::10], shown[9::10, 9::10])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_and_tensors_round_trip(channels):
    image = (torch.rand(5, 7, channels) * 255).round() / 255
    back = to_tensor(to_pil(image))
    torch.testing.assert_close(back, (image.expand(-1, -1, 3) if channels == 1 else image[..., :3]).contiguous())


def test_the_worst_frame_is_shown():
    psnr = torch.full((20,), 40.0)
    psnr[13] = 20.0
    assert picture.choose_frames(psnr, 3) == [0, 13, 19]
    assert picture.choose_frames(psnr, 1) == [13]
    assert picture.choose_frames(psnr[:4], 9) == [0, 1, 2, 3]
    for count in range(1, 20):
        chosen = picture.choose_frames(psnr, count)
        assert 13 in chosen and len(set(chosen)) == count and chosen == sorted(chosen)


def test_error_colours_match_the_scale():
    black, full = torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)
    full[0, :, 0] = torch.tensor([0.0, 3.0, 3 * 0.125, 3 * 0.0625])[[0, 1, 2, 3]].clamp(max=1)
    found = picture.error_map(black, full, 8.0)[0] * 255
    assert found[0].tolist() == list(picture.HEAT[0])   # no error: the first colour
    assert found[1].tolist() == list(picture.HEAT[-1])   # clipped
    torch.testing.assert_close(found[2], torch.tensor(picture.HEAT[-1], dtype=torch.float32))   # mean 1/8, times 8
    torch.testing.assert_close(found[3], torch.tensor(picture.HEAT[2], dtype=torch.float32))   # half scale


@pytest.mark.parametrize(("low", "high"), [(0, 1), (26.39, 33.4), (0.99, 1.0), (-0.2, 0.93), (3, 3000), (30.001, 31.0)])
def test_ticks_are_round_few_and_cover_the_range(low, high):
    ticks = plot.nice_ticks(low, high)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    texts = [text for _, text in plot.labels(ticks)]
    assert len(set(texts)) == len(texts)
    assert [float(text) for text in texts] == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[30.0, 31.0, 29.5], [30.0] * 5, [math.inf, 30.0, math.inf], [1.0, 1.0]])
def test_the_curve_stays_inside_its_area(values):
    area = plot.Area(600, values, 1.0, math.inf)
    for i, value in enumerate(values):
        assert 0 < area.x(i) < 600
        if math.isfinite(value):
            assert 0 < area.y(value) < plot.HEIGHT
    assert area.high - area.low >= 1.0
    drawn = area.draw(values, (10, 20, 30), [0])
    assert drawn.size == (600, plot.HEIGHT)
    assert any(colour == (10, 20, 30) for _, colour in drawn.getcolors(100_000))


def test_ssim_axis_ends_at_one():
    area = plot.Area(600, [1.0, 0.9999], 0.01, 1.0)
    assert area.high == pytest.approx(1.0)
    assert area.low <= 0.99


def test_long_words_and_lines_are_cut_to_the_width():
    assert text_width(cut("word" * 100, 200)) <= 200
    assert cut("short", 200) == "short"
    lines = wrap("some words " * 30 + "x" * 300, 240)
    assert all(text_width(line) <= 240 for line in lines)
    assert " ".join(lines).startswith("some words some words")
