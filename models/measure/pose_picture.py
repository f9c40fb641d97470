"""The picture of a pose following score: where each zone is in the truth and in the clip, and the error over frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .canvas import HEADING, INK, TEXT, Canvas, cut, line_height, text_width, to_pil, to_tensor, wrap
from .picture import LEAST_WIDTH, MARGIN, PSNR_COLOUR, SSIM_COLOUR, choose_frames, resize, shown_size, write_lines
from .plot import plot_frames
from .pose_following import PoseScore

RING = 5  # pixels, the radius of a mark
LEGEND = ("Ring: the middle of a zone, in its colour. Line: from its place in the truth. Cross: a zone that the truth "
          "shows and the clip does not.")  # fmt: skip


def draw_following(clip: Tensor, truth: Tensor, score: PoseScore, heading: str, shown: int = 3) -> Tensor:
    """The score on one sheet, its worst frame first.

    clip, truth: [F, H, W, C] 0..1, of the same proportions    shown: number of frames side by side
    returns: [height, width, 3]
    """
    return to_tensor(lay_out(clip, truth, score, heading, shown).render(MARGIN))


def lay_out(clip: Tensor, truth: Tensor, score: PoseScore, heading: str, shown: int) -> Canvas:
    """Everything in its place, from top to bottom. Arguments as in `draw_following`."""
    frames = frames_of(score, shown)
    size = shown_size(*truth.shape[1:3])
    heads = [f"frame {f}{', worst' if f == score.worst_frame else ''}: {error(score, f)}" for f in frames]
    column = max(size[0], *(text_width(head) for head in heads)) + MARGIN
    canvas = Canvas(max(LEAST_WIDTH, MARGIN + column * len(frames)))
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, [cut(heading, inside, HEADING)], HEADING) + 4
    y = write_lines(canvas, y, [line for text in (*score.lines(), LEGEND) for line in wrap(text, inside)]) + 12
    for i, head in enumerate(heads):
        canvas.write(MARGIN + i * column, y, head)
    y += line_height(TEXT) + 4
    for name, pictures, marked in (("truth", truth, None), ("clip", clip, score.found)):
        y = write_lines(canvas, y, [name])
        for i, frame in enumerate(frames):
            panel = resize(to_pil(pictures[frame]), size)
            canvas.paste(MARGIN + i * column, y, marks_on(panel, score, frame, marked))
        y += size[1] + 10
    draw_plots(canvas, y, inside, score, frames)
    return canvas


def frames_of(score: PoseScore, count: int) -> list[int]:
    """Frames to show: the worst one, then others evenly spread."""
    by_error = -score.part_errors.nanmean(1).nan_to_num(-1.0)
    chosen = choose_frames(by_error, count)
    return sorted(chosen, key=lambda frame: (frame != score.worst_frame, frame))


def error(score: PoseScore, frame: int) -> str:
    """The part error of a frame in words."""
    value = score.part_errors[frame].nanmean().item()
    return "nothing to judge" if value != value else f"{value:.1f} pixels"


def marks_on(panel: Image.Image, score: PoseScore, frame: int, found: Tensor | None) -> Image.Image:
    """A frame with a mark for each zone that is judged. found: [F, Z, 2] of the clip; None marks the truth alone"""
    draw, scale = ImageDraw.Draw(panel), panel.height / score.height
    for zone in score.judged[frame].nonzero().flatten().tolist():
        there = tuple((score.truth[frame, zone] * scale).tolist())
        place = score.truth[frame, zone] if found is None else found[frame, zone]
        if bool(place.isnan().any()):
            cross(draw, there)
            continue
        here = tuple((place * scale).tolist())
        draw.line([there, here], fill=INK, width=2)
        fill = tuple((score.colours[zone] * 255).round().to(torch.int64).tolist())
        box = [here[0] - RING, here[1] - RING, here[0] + RING, here[1] + RING]
        draw.ellipse(box, fill=fill, outline="white", width=1)
    return panel


def cross(draw: ImageDraw.ImageDraw, place: tuple[float, float]) -> None:
    """A red cross on white."""
    x, y = place
    for width, colour in ((4, "white"), (2, (200, 20, 30))):
        for way in (-1, 1):
            draw.line([(x - RING, y - way * RING), (x + RING, y + way * RING)], fill=colour, width=width)


def draw_plots(canvas: Canvas, y: int, width: int, score: PoseScore, marks: Sequence[int]) -> None:
    """Part error and recall over the frames, `marks` being the frames shown above. A still has none."""
    if len(score.judged) < 2:
        return
    gap = "" if bool(score.judged.any(1).all()) else " (ring: nothing to judge)"
    errors = score.part_errors.nanmean(1).tolist()
    y = plot_frames(canvas, MARGIN, y, width, errors, f"part error, pixels{gap}", PSNR_COLOUR, marks) + 12
    recalls = score.recalls.nan_to_num(0.0).tolist()
    plot_frames(canvas, MARGIN, y, width, recalls, "part recall, 1 = all", SSIM_COLOUR, marks, 0.1, 1.0)
