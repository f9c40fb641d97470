"""How far a test clip is from its reference, frame by frame: PSNR, SSIM, flicker.

SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
IEEE Transactions on Image Processing 13(4), 2004. Where we differ: the mean over colour channels instead of luma, and a
frame narrower than the window is filtered with the window cut to its side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# T frames   H rows   W columns   C colour channels        clips are T H W C, float, 0..1
LEVELS = 255.0  # one unit of flicker is one step of an 8-bit picture
WINDOW = 11
SIGMA = 1.5  # pixels
C1 = 0.01**2  # (K1 L)^2 of the paper with the data range L = 1
C2 = 0.03**2
LEAST_FRAMES = 3  # a second difference over time needs three
CHUNK_PIXELS = 1 << 20  # pixels held as working copies at once: about 150 MB in float32


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. PSNR is in dB (inf where nothing differs), flicker in 8-bit levels."""

    psnr: Tensor  # [T] float64
    ssim: Tensor  # [T] float64
    clip_psnr: float  # of the squared error over all frames: one bad frame shows, identical ones do not make it inf
    flicker_reference: float
    flicker_test: float

    @property
    def clip_ssim(self) -> float:
        """Mean SSIM over the frames."""
        return self.ssim.mean().item()

    @property
    def worst_frame(self) -> int:
        """Index of the frame with the lowest PSNR; the first one where several share it."""
        return int(self.psnr.argmin())


def psnr(reference: Tensor, test: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame for a data range of 1, in dB; inf for identical frames.

    reference, test: [T, H, W, C]
    returns: [T] float64
    """
    return decibel(squared_error(reference, test))


def squared_error(reference: Tensor, test: Tensor) -> Tensor:
    """Mean squared error of each frame. [T, H, W, C] -> [T] float64."""
    return (test - reference).square().mean(dim=(1, 2, 3), dtype=torch.float64)


def decibel(error: Tensor) -> Tensor:
    """PSNR of a mean squared error."""
    return -10.0 * error.log10()


def ssim(reference: Tensor, test: Tensor) -> Tensor:
    """Structural similarity of each frame, over the windows that lie wholly inside it; 1 for identical frames.

    reference, test: [T, H, W, C]
    returns: [T] float64, at most 1
    """
    # moments around mid-grey: in float32 a flat bright area loses its variance in rounding
    x, y = (clip.permute(0, 3, 1, 2).contiguous() - 0.5 for clip in (reference, test))  # [T, C, H, W]
    mean_x, mean_y, squares, product = (blur(z) for z in (x, y, x * x + y * y, x * y))
    covariance, variances = product - mean_x * mean_y, squares - (mean_x * mean_x + mean_y * mean_y)
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    alike = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    score = alike / ((mean_x * mean_x + mean_y * mean_y + C1) * (variances + C2))
    return score.flatten(1).mean(dim=1, dtype=torch.float64)


def blur(maps: Tensor) -> Tensor:
    """Gaussian mean around every pixel that has the whole window inside. [T, C, H, W] -> [T, C, H', W']."""
    for axis in (-2, -1):
        weights = gaussian(min(WINDOW, maps.shape[axis])).tolist()
        length = maps.shape[axis] - len(weights) + 1
        # shifted sums: on a CPU a conv2d of one channel takes ten times as long
        total = weights[0] * maps.narrow(axis, 0, length)
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(maps.narrow(axis, shift, length), alpha=weight)
        maps = total
    return maps


def gaussian(length: int) -> Tensor:
    """Weights of the SSIM window along one axis; they sum to 1. returns: [length] float64."""
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weight = torch.exp(-distance.square() / (2 * SIGMA**2))
    return weight / weight.sum()


def flicker(clip: Tensor) -> float:
    """Mean of |x[t+1] - 2 x[t] + x[t-1]| over inner frames, pixels and channels, in 8-bit levels.

    The second difference is blind to anything that stands still or changes at a steady rate, so what is left is
    jitter, plus moving edges. Moving edges belong to the picture: judge a test clip by its flicker *less* that of its
    reference. Above 0 it flickers more, below 0 it is smoother (often: blurred, or moving less).

    clip: [T, H, W, C] with T >= 3
    """
    return LEVELS * jitter(clip).mean().item()


def jitter(clip: Tensor) -> Tensor:
    """Mean absolute second difference around each inner frame, data range 1. [T, H, W, C] -> [T - 2] float64."""
    return clip.diff(n=2, dim=0).abs().mean(dim=(1, 2, 3), dtype=torch.float64)


def compare(
    reference: Tensor,
    test: Tensor,
    progress: Callable[[int], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Comparison:
    """Measure `test` against `reference`, a few frames at a time; values outside 0..1 count as 0 or 1.

    reference, test: [T, H, W, C], accepted by `why_not`
    progress: called with the number of frames done after every chunk
    check: called before every chunk; may raise to stop (an interrupt)
    """
    errors, likeness, jitters = [], [], ([], [])
    for start, stop in chunks(reference):
        if check is not None:
            check()
        before = max(0, start - 2)  # the two frames that the first second difference of this chunk reaches back to
        pair = [clip[before:stop].to(reference.device, torch.float32).clamp(0, 1) for clip in (reference, test)]
        for found, clip in zip(jitters, pair, strict=True):
            found.append(jitter(clip))
        x, y = (clip[start - before :] for clip in pair)
        errors.append(squared_error(x, y))
        likeness.append(ssim(x, y))
        if progress is not None:
            progress(stop)
    error = torch.cat(errors).cpu()
    of_reference, of_test = (LEVELS * torch.cat(found).mean().item() for found in jitters)
    return Comparison(decibel(error), torch.cat(likeness).cpu(), decibel(error.mean()).item(), of_reference, of_test)


def chunks(clip: Tensor) -> Iterator[tuple[int, int]]:
    """First and last + 1 frame of each run of frames that may be worked on at once."""
    frames, height, width = clip.shape[:3]
    size = max(1, CHUNK_PIXELS // (height * width))
    return ((start, min(start + size, frames)) for start in range(0, frames, size))


def why_not(reference: Tensor, test: Tensor) -> str | None:
    """Why these two clips cannot be compared, as a sentence, or None."""
    for name, clip in (("reference", reference), ("test", test)):
        if clip.ndim != 4 or clip.numel() == 0:
            return (
                f"the {name} video is empty: its shape is {tuple(clip.shape)}. Frames x height x width x channels "
                f"with at least {LEAST_FRAMES} frames are accepted. Connect the frames of a clip (for a VIDEO: "
                f"Get Video Components)."
            )
        if clip.shape[0] < LEAST_FRAMES:
            return (
                f"the {name} video has {clip.shape[0]} frame(s). At least {LEAST_FRAMES} are needed, because flicker "
                f"is a change over three frames. Make a longer clip."
            )
    if reference.shape[0] != test.shape[0]:
        return (
            f"the reference has {reference.shape[0]} frames and the test {test.shape[0]}. Both must have the same "
            f"number. Trim the longer one (Image From Batch), or render both with the same length."
        )
    if reference.shape[1:3] != test.shape[1:3]:
        sizes = " and ".join(f"{clip.shape[2]} x {clip.shape[1]}" for clip in (reference, test))
        return (
            f"reference and test are {sizes} pixels (width x height). Both must have the same size. Scale one of them "
            f"(Upscale Image), or render both at the same size."
        )
    if reference.shape[3] != test.shape[3]:
        return (
            f"the reference has {reference.shape[3]} colour channels and the test {test.shape[3]}. Both must have the "
            f"same number. Convert one of them."
        )
    return not_finite("reference", reference) or not_finite("test", test)


def not_finite(name: str, clip: Tensor) -> str | None:
    """The sentence for NaN or infinite pixels, or None."""
    bad = [start + i for start, stop in chunks(clip) for i in bad_frames(clip[start:stop])]
    if not bad:
        return None
    return (
        f"{len(bad)} of the {clip.shape[0]} frames of the {name} video hold NaN or infinite pixels, first frame "
        f"{bad[0]}. Only finite pixels can be compared. Check the model and VAE precision of that branch (fp16 "
        f"overflow is the usual cause), then render it again."
    )


def bad_frames(clip: Tensor) -> list[int]:
    """Indices of the frames with a pixel that is not finite."""
    sums = clip.flatten(1).sum(dim=1, dtype=torch.float32)  # one bad pixel makes the sum bad, at a fiftieth of the time
    return (~sums.isfinite()).nonzero().flatten().tolist()
