"""PSNR, SSIM and flicker against closed forms and a naive float64 SSIM."""

import math

import pytest
import torch
from interspatial.models.measure import metrics

# T H W C: ordinary, exactly one window, narrower than the window, prime sides
SHAPES = [(3, 24, 32, 3), (1, 11, 11, 1), (2, 7, 40, 3), (2, 17, 23, 2)]


def clip(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_ssim(x, y):
    """Equation 13 of the paper at every window position, two-dimensional weights, centred moments."""
    height, width = x.shape
    rows, columns = min(11, height), min(11, width)
    weight = torch.tensor(
        [[math.exp(-((i - (rows - 1) / 2) ** 2 + (j - (columns - 1) / 2) ** 2) / 4.5) for j in range(columns)]
         for i in range(rows)], dtype=torch.float64)
    weight /= weight.sum()
    scores = []
    for i in range(height - rows + 1):
        for j in range(width - columns + 1):
            a, b = (z[i : i + rows, j : j + columns] for z in (x, y))
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            variance_a, variance_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
            scores.append((2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
                          / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2)))
    return torch.stack(scores).mean()


def test_psnr_of_a_constant_error():
    reference = clip(3, 9, 13, 3) * 0.4
    error = torch.tensor([0.1, 0.01, 0.5], dtype=torch.float64)
    found = metrics.psnr(reference, reference + error.view(3, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([20.0, 40.0, 20 * math.log10(2)], dtype=torch.float64))


def test_identical_frames_are_infinite_and_do_not_hide_the_others():
    reference = clip(4, 16, 16, 3) * 0.5
    test = reference.clone()
    test[1] += 0.2
    found = metrics.compare(reference, test)
    assert found.psnr.isinf().tolist() == [True, False, True, True]
    assert found.clip_psnr == pytest.approx(10 * math.log10(4 / 0.2**2), abs=1e-4)   # the error spread over four frames
    assert found.worst_frame == 1
    same = metrics.compare(reference, reference.clone())
    assert same.clip_psnr == math.inf
    assert same.clip_ssim == 1.0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-H{}-W{}-C{}".format(*s))
def test_ssim_matches_the_definition(shape):
    reference = clip(*shape)
    test = (reference + 0.2 * clip(*shape, seed=1) - 0.1).clamp(0, 1)
    expected = torch.stack([
        torch.stack([naive_ssim(reference[t, ..., c], test[t, ..., c]) for c in range(shape[3])]).mean()
        for t in range(shape[0])
    ])
    torch.testing.assert_close(metrics.ssim(reference, test), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics.ssim(reference.float(), test.float()), expected, rtol=0, atol=1e-5)


def test_ssim_of_flat_frames():
    a, b = 0.9, 0.7   # no variance: only the luminance term is left
    found = metrics.ssim(torch.full((1, 20, 20, 3), a), torch.full((1, 20, 20, 3), b))
    assert found.item() == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-4)


def test_ssim_of_a_clip_with_itself_is_exactly_one():
    x = clip(3, 33, 18, 3, dtype=torch.float32)
    assert metrics.ssim(x, x.clone()).tolist() == [1.0, 1.0, 1.0]


def test_flicker_is_zero_for_what_stands_still_or_changes_steadily():
    still = clip(1, 8, 8, 3).expand(7, -1, -1, -1)
    ramp = torch.linspace(0, 1, 9, dtype=torch.float64).view(9, 1, 1, 1).expand(-1, 4, 5, 3)
    assert metrics.flicker(still) == 0.0
    assert metrics.flicker(ramp) < 1e-12


@pytest.mark.parametrize("period", [2.0, 4.0, 7.3])
def test_flicker_of_a_sinusoid(period):
    frames, amplitude, phase = 23, 0.3, 0.4
    angle = 2 * math.pi / period
    wave = torch.tensor([0.5 + amplitude * math.sin(angle * t + phase) for t in range(frames)], dtype=torch.float64)
    # the second difference of a sinusoid is the sinusoid times -4 sin^2(angle / 2)
    factor = 4 * math.sin(angle / 2) ** 2 * amplitude * 255
    expected = factor * sum(abs(math.sin(angle * t + phase)) for t in range(1, frames - 1)) / (frames - 2)
    assert metrics.flicker(wave.view(-1, 1, 1, 1).expand(-1, 3, 4, 3)) == pytest.approx(expected, rel=1e-12)


def test_flicker_of_one_flashing_frame():
    flash = torch.zeros(10, 4, 4, 3)
    flash[5] = 0.2   # second differences 0.2, -0.4, 0.2
    assert metrics.flicker(flash) == pytest.approx(255 * 0.8 / 8, rel=1e-6)


def test_chunks_change_nothing(monkeypatch):
    reference, test = clip(11, 12, 15, 3, dtype=torch.float32), clip(11, 12, 15, 3, seed=1, dtype=torch.float32)
    whole = metrics.compare(reference, test)
    assert whole.flicker_test == pytest.approx(metrics.flicker(test), rel=1e-6)
    for pixels in (1, 12 * 15 * 2, 12 * 15 * 4):   # 1, 2 and 4 frames at once
        monkeypatch.setattr(metrics, "CHUNK_PIXELS", pixels)
        done = []
        parts = metrics.compare(reference, test, progress=done.append)
        torch.testing.assert_close(parts.psnr, whole.psnr, rtol=1e-12, atol=0)
        torch.testing.assert_close(parts.ssim, whole.ssim, rtol=1e-12, atol=0)
        assert parts.flicker_reference == pytest.approx(whole.flicker_reference, rel=1e-12)
        assert parts.flicker_test == pytest.approx(whole.flicker_test, rel=1e-12)
        assert done == sorted(done)
        assert done[-1] == 11
    assert len(list(metrics.chunks(reference))) == 3


def test_check_stops_between_chunks(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1)
    done = []

    def check():
        if len(done) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        metrics.compare(clip(5, 12, 12, 3), clip(5, 12, 12, 3), done.append, check)
    assert done == [1, 2]


def test_values_outside_the_range_count_as_its_ends():
    reference = torch.ones(3, 12, 12, 3)
    assert metrics.compare(reference, reference * 1.5).clip_psnr == math.inf


def test_half_precision_is_measured_in_single():
    reference = clip(3, 12, 12, 3, dtype=torch.float32).half()
    found = metrics.compare(reference, reference.clone())
    assert found.clip_psnr == math.inf
    assert found.clip_ssim == 1.0


GOOD = torch.zeros(5, 8, 6, 3)


@pytest.mark.parametrize(("reference", "test", "words"), [
    (GOOD[:0], GOOD, ["reference video is empty", "(0, 8, 6, 3)", "Get Video Components"]),
    (GOOD, GOOD[0], ["test video is empty", "(8, 6, 3)"]),
    (GOOD, GOOD[:1], ["test video has 1 frame", "At least 3"]),
    (GOOD, GOOD[:2], ["2 frame", "At least 3"]),
    (GOOD, GOOD[:4], ["reference has 5 frames and the test 4", "Trim"]),
    (GOOD, GOOD[:, :7], ["6 x 8 and 6 x 7 pixels", "Scale"]),
    (GOOD, GOOD[..., :1], ["3 colour channels and the test 1"]),
    (GOOD, GOOD / 0, ["5 of the 5 frames of the test video hold NaN", "first frame 0"]),
    (torch.stack([GOOD[0], GOOD[0] + math.inf, GOOD[0]]), GOOD[:3], ["1 of the 3 frames of the reference", "frame 1"]),
], ids=["empty", "still", "one", "two", "lengths", "sizes", "channels", "nan", "inf"])
def test_why_not(reference, test, words):
    reason = metrics.why_not(reference, test)
    assert reason is not None
    assert all(word in reason for word in words), reason
    assert reason.endswith((".", ")."))


def test_why_not_accepts_good_clips():
    assert metrics.why_not(GOOD, GOOD.half()) is None
