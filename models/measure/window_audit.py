"""How well a video VAE keeps each of the frames that share a latent frame.

A causal VAE folds several frames into one latent frame. Trained without care, the latent is mostly about the last of
them, and fast motion shows it. Source: ISA4D (2505.15800), last-frame bias.

T frames   H W rows and columns   C colour channels      clips are T H W C, float, 0..1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .canvas import FAINT, HEADING, TEXT, Canvas, line_height, text_width, to_tensor
from .plot import nice_ticks

MARGIN, WIDTH, HEIGHT, BAR = 16, 560, 200, 40  # pixels
COLOUR, FIRST_COLOUR = (31, 99, 176), (140, 150, 165)


@dataclass(frozen=True)
class WindowAudit:
    """errors: mean squared error of the first frame of the clip, then by place in the window
    counts: frames behind each of these, 0 at places that a short clip does not reach
    """

    errors: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Of a full window."""
        return len(self.errors) - 1

    @property
    def psnr(self) -> tuple[float, ...]:
        """dB, infinite for identical frames, not a number where there was no frame"""
        return tuple(decibels(e) if n else math.nan for e, n in zip(self.errors, self.counts, strict=True))

    @property
    def spread(self) -> float:
        """dB between the best and the worst place of the window; 0 for VAEs that fold no frames."""
        known = [p for p in self.psnr[1:] if math.isfinite(p)]
        return max(known) - min(known) if known else 0.0


def decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def audit(clip: Tensor, back: Tensor, window: int) -> WindowAudit:
    """Compare a clip with what came back; frames that came back beyond its end are not looked at.

    clip, back: [T, H, W, C], the sides of `back` no longer than the clip's    window: frames of a latent frame

    raises: ValueError for a clip that came back empty, or with other sides
    """
    frames = min(len(clip), len(back))
    y, x = (clip.shape[i] - back.shape[i] for i in (1, 2))
    if frames == 0 or min(x, y) < 0:
        raise ValueError(f"VAE Window Audit: the clip of shape {list(clip.shape)} came back with shape "
                         f"{list(back.shape)}. Give a clip whose sides the VAE takes.")  # fmt: skip
    clip = clip[:frames, y // 2 : y // 2 + back.shape[1], x // 2 : x // 2 + back.shape[2], : back.shape[3]]
    error = (clip.float() - back[:frames, ..., : clip.shape[3]].to(clip.device).float()).square().mean((1, 2, 3))
    places = [[error[0].item()], *(error[1 + k :: window].tolist() for k in range(window))]
    return WindowAudit(tuple(sum(p) / max(1, len(p)) for p in places), tuple(len(p) for p in places))


def names(frames: int) -> list[str]:
    """Of the places, in order."""
    return ["first frame of the clip", *(f"frame {k + 1} of {frames}" for k in range(frames))]


def describe(found: WindowAudit) -> list[str]:
    """The audit in words."""
    mean = sum(e * n for e, n in zip(found.errors, found.counts, strict=True)) / sum(found.counts)
    lines = [f"PSNR of all {sum(found.counts)} frames: {decibels(mean):.2f} dB"]
    for name, value, count in zip(names(found.frames), found.psnr, found.counts, strict=True):
        lines.append(f"{name}: {value:.2f} dB, from {count}" if count else f"{name}: the clip is too short")
    if found.frames > 1:
        lines.append(f"between the best and the worst place of the window: {found.spread:.2f} dB")
    else:
        lines.append("this VAE keeps frames apart: there is no window")
    return lines


def draw_audit(found: WindowAudit, title: str, lines: Sequence[str]) -> Tensor:
    """Bars of PSNR by place. returns: [height, width, 3] 0..1"""
    canvas = Canvas(WIDTH)
    y = canvas.write(MARGIN, MARGIN, title, HEADING)[3] + 4
    for line in lines:
        y = canvas.write(MARGIN, y, line)[3]
    finite = [p for p in found.psnr if math.isfinite(p)] or [0.0]
    ticks = nice_ticks(min(finite) - 1, max(finite) + 0.5)
    left, top = MARGIN + 40, y + 16
    for tick in ticks:
        level = top + round((ticks[-1] - tick) / (ticks[-1] - ticks[0]) * HEIGHT)
        canvas.write(left - 8 - text_width(f"{tick:g}"), level - line_height(TEXT) // 2, f"{tick:g}", colour=FAINT)
    step = (WIDTH - MARGIN - left) // len(found.psnr)
    for place, value in enumerate(found.psnr):
        x = left + place * step
        if not math.isnan(value):
            tall = max(1, round((min(value, ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0]) * HEIGHT))
            bar = Image.new("RGB", (BAR, tall), COLOUR if place else FIRST_COLOUR)
            canvas.paste(x + (step - BAR) // 2, top + HEIGHT - tall, bar)
        word = "first" if place == 0 else f"{place} of {found.frames}"
        canvas.write(x + (step - text_width(word)) // 2, top + HEIGHT + 6, word, colour=FAINT)
    return to_tensor(canvas.render(MARGIN))
