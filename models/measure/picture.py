"""The picture of a comparison: frames of both clips, their error map with its scale, PSNR and SSIM over the frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .canvas import FAINT, HEADING, TEXT, Canvas, cut, line_height, text_width, to_pil, to_tensor, wrap
from .metrics import LEVELS, Comparison
from .plot import labels, nice_ticks, plot_frames

# T frames   H rows   W columns   C colour channels        clips are T H W C, float, 0..1
MARGIN = 16
LEAST_SIDE = 256  # pixels of the longer side of a shown frame: smaller clips are enlarged by whole numbers
MOST_SIDE = 384  # larger clips are averaged down; a wider sheet is unreadable on a node
LEAST_WIDTH = 720  # pixels of the picture: room for the lines of the report
PSNR_COLOUR = (31, 99, 176)
SSIM_COLOUR = (196, 88, 22)
HEAT = ((0, 0, 0), (52, 24, 120), (170, 40, 120), (244, 128, 44), (255, 248, 200))  # even steps from 0 to full scale


def draw_comparison(
    reference: Tensor,
    test: Tensor,
    found: Comparison,
    names: tuple[str, str],
    report: Sequence[str] = (),
    error_gain: float = 8.0,
    shown: int = 3,
) -> Tensor:
    """The comparison on one sheet.

    reference, test: [T, H, W, C]
    names: of the reference and of the test
    report: lines of text under the heading
    error_gain: the error map reaches its brightest colour at 255 / error_gain levels
    shown: number of frames side by side
    returns: [height, width, 3]
    """
    return to_tensor(lay_out(reference, test, found, names, report, error_gain, shown).render(MARGIN))


def lay_out(
    reference: Tensor,
    test: Tensor,
    found: Comparison,
    names: tuple[str, str],
    report: Sequence[str],
    error_gain: float,
    shown: int,
) -> Canvas:
    """Everything in its place, from top to bottom. Arguments as in `draw_comparison`."""
    frames = choose_frames(found.psnr, shown)
    heads = [caption(frame, found) for frame in frames]
    size = shown_size(reference.shape[1], reference.shape[2])
    column = max(size[0], *(text_width(head) for head in heads)) + MARGIN
    canvas = Canvas(max(LEAST_WIDTH, MARGIN + column * len(frames)))
    inside = canvas.width - 2 * MARGIN

    y = write_lines(canvas, MARGIN, [cut(f"{names[1]} against {names[0]}", inside, HEADING)], HEADING) + 4
    y = write_lines(canvas, y, [line for text in report for line in wrap(text, inside)]) + 12
    for i, head in enumerate(heads):
        canvas.write(MARGIN + i * column, y, head)
    y += line_height(TEXT) + 4
    rows = (
        (names[0], [reference[i] for i in frames]),
        (names[1], [test[i] for i in frames]),
        (f"difference x {error_gain:g}", [error_map(reference[i], test[i], error_gain) for i in frames]),
    )
    for name, row in rows:
        y = write_lines(canvas, y, [cut(name, inside)])
        for i, image in enumerate(row):
            canvas.paste(MARGIN + i * column, y, resize(to_pil(image), size))
        y += size[1] + 10
    y = draw_scale(canvas, y, error_gain) + 16
    draw_plots(canvas, y, inside, found, frames)
    return canvas


def draw_plots(canvas: Canvas, y: int, width: int, found: Comparison, marks: Sequence[int]) -> None:
    """PSNR and SSIM over the frames, `marks` being the frames shown above."""
    identical = found.psnr.isinf()
    if identical.all():
        y = write_lines(canvas, y, ["PSNR: every frame is identical"]) + 12
    else:
        title = "PSNR, dB (ring: identical frame)" if identical.any() else "PSNR, dB"
        y = plot_frames(canvas, MARGIN, y, width, found.psnr.tolist(), title, PSNR_COLOUR, marks) + 12
    plot_frames(canvas, MARGIN, y, width, found.ssim.tolist(), "SSIM, 1 = identical", SSIM_COLOUR, marks, 0.01, 1.0)


def write_lines(canvas: Canvas, y: int, lines: Sequence[str], size: int = TEXT) -> int:
    """Lines of text at the left margin; returns the y below them."""
    for line in lines:
        y = canvas.write(MARGIN, y, line, size)[3]
    return y


def choose_frames(psnr: Tensor, count: int) -> list[int]:
    """`count` frames (or all of a shorter clip), evenly spread; the one nearest to the worst frame moves to it."""
    count = max(1, min(count, len(psnr)))
    chosen = [round(i * (len(psnr) - 1) / max(1, count - 1)) for i in range(count)]
    worst = int(psnr.argmin())
    nearest = min(range(count), key=lambda i: abs(chosen[i] - worst))
    return [*chosen[:nearest], worst, *chosen[nearest + 1 :]]


def caption(frame: int, found: Comparison) -> str:
    """Number and PSNR of a shown frame."""
    psnr = found.psnr[frame].item()
    if math.isinf(psnr):
        return f"frame {frame}: identical"
    return f"frame {frame}{', worst' if frame == found.worst_frame else ''}: {psnr:.1f} dB"


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Width and height that a frame is shown with."""
    longer = max(height, width)
    if longer >= LEAST_SIDE:
        scale = min(1.0, MOST_SIDE / longer)
        return max(1, round(width * scale)), max(1, round(height * scale))
    times = math.ceil(LEAST_SIDE / longer)
    return width * times, height * times


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarged in hard squares, so that a pixel stays one pixel; made smaller by averaging."""
    larger = size[0] > image.width
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def error_map(reference: Tensor, test: Tensor, gain: float) -> Tensor:
    """Mean absolute difference over the channels, times `gain`, as a heat colour. [H, W, C] -> [H, W, 3]."""
    difference = test.to(reference.device).float().clamp(0, 1) - reference.float().clamp(0, 1)
    return heat(difference.abs().mean(dim=-1) * gain)


def heat(value: Tensor) -> Tensor:
    """Colour of a value from 0 to 1, black to pale yellow; above 1 as 1. [...] -> [..., 3]."""
    colours = torch.tensor(HEAT, dtype=torch.float32, device=value.device) / 255
    place = value.clamp(0, 1) * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    return torch.lerp(colours[below], colours[below + 1], (place - below).unsqueeze(-1))


def draw_scale(canvas: Canvas, y: int, gain: float) -> int:
    """The bar that says which colour is how much difference; returns the y below its numbers."""
    width, height, full = 420, 14, LEVELS / gain
    ramp = heat(torch.linspace(0, 1, width)).expand(height, -1, -1)
    canvas.paste(MARGIN, y, to_pil(ramp))
    ticks = [tick for tick in nice_ticks(0, full) if tick <= full]
    for value, text in labels(ticks):
        x = MARGIN + round(value / full * (width - 1)) - text_width(text) // 2
        canvas.write(max(MARGIN, x), y + height + 2, text, colour=FAINT)
    canvas.write(MARGIN + width + 24, y + height + 2, "levels of 255; last colour: or more", colour=FAINT)
    return y + height + 2 + line_height(TEXT)
