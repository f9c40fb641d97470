"""Which places one place of the video looks at, laid over its frames: one row for each method."""
# T H W: latent frames, rows, columns after patchify   F frames, P Q pixel rows and columns

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .attention_error import AttentionMeter, Findings, Place
from .candidates import asked
from .canvas import FAINT, HEADING, TEXT, Canvas, line_height, text_width, to_pil, to_tensor, wrap
from .picture import MARGIN, heat, write_lines

WIDTH = 900
TILE = (206, 150)  # most that a frame may take, width and height in pixels
MOST = 6  # frames in a row
GAP = 10
BEST = "best choice: the blocks with most of the exact attention"
DARK = 0.5  # brightness that is left of a place that no head looks at
SHINE = 0.45  # share of the picture's light and shade in the colour of a place that is looked at
QUERY = (90, 235, 255)  # a colour that the heat map does not have


def draw_looks(found: Findings, frames: Tensor, meter: AttentionMeter) -> Tensor:
    """The sheet.

    frames: [F, P, Q, 3] 0..1, as many as the video has or one for each latent frame
    meter: says which place looks, and at which density
    returns: [height, width, 3]
    """
    return to_tensor(lay_out(found, frames, meter.place, meter.shown).render(MARGIN))


def lay_out(found: Findings, frames: Tensor, place: Place, density: float | None) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas, inside = Canvas(WIDTH), WIDTH - 2 * MARGIN
    at = place.cell(found.grid)
    y = write_lines(canvas, MARGIN, ["Where one place looks"], HEADING) + 4
    text = (
        f"The outlined block of latent frame {at[0]} looks at the bright places: share of the heads of all measured "
        f"layers that keep a place exact for it, at density {asked(density)}."
    )
    y = write_lines(canvas, y, wrap(text, inside)) + 10
    size = tile_size(frames.shape[1], frames.shape[2])
    pitch = max(size[0], text_width("latent frame 100")) + GAP
    shown = choose_frames(found.grid[0], at[0], min(MOST, (inside + GAP) // pitch))
    pictures = [grey(frames, frame, found.grid[0], size) for frame in shown]
    for i, frame in enumerate(shown):
        canvas.write(MARGIN + i * pitch, y, f"latent frame {frame}", colour=FAINT)
    y += line_height(TEXT) + 2
    for name, seen in found.seen.items():
        share = torch.stack(seen).mean(0).view(found.grid)
        y = write_lines(canvas, y, [name or BEST])
        for i, (frame, picture) in enumerate(zip(shown, pictures, strict=True)):
            dot = at[1:] if frame == at[0] else None
            canvas.paste(MARGIN + i * pitch, y, overlay(picture, share[frame], found.query[frame], dot))
        y += size[1] + GAP
    draw_scale(canvas, y)
    return canvas


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Width and height that a frame is shown with."""
    scale = min(TILE[0] / width, TILE[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def choose_frames(count: int, query: int, room: int) -> list[int]:
    """Latent frames, evenly spread; the one nearest to that of the query moves to it."""
    room = max(1, min(count, room))
    chosen = [round(i * (count - 1) / max(1, room - 1)) for i in range(room)]
    nearest = min(range(room), key=lambda i: abs(chosen[i] - query))
    return [*chosen[:nearest], query, *chosen[nearest + 1 :]]


def grey(frames: Tensor, latent: int, latents: int, size: tuple[int, int]) -> Image.Image:
    """The frame of a latent frame, without colour. The first of each stands for the first of the other."""
    frame = frames[round(latent * (len(frames) - 1) / max(1, latents - 1))]
    picture = to_pil(frame.float().mean(-1, keepdim=True))
    return picture.resize(size, Image.Resampling.BICUBIC)


def frames_of(latent: dict, vae) -> Tensor:
    """The pictures that a LATENT stands for: decoded, or without a VAE its own channels. returns: [F, P, Q, 3]"""
    samples = latent["samples"]
    samples = samples.unbind()[0] if samples.is_nested else samples  # video and sound in one
    if vae is None:
        return latent_frames(samples)
    images = vae.decode(samples)
    return images[0] if images.ndim == 5 else images


def latent_frames(samples: Tensor) -> Tensor:
    """A latent as grey pictures, when there is nothing to decode it with: its first three channels, stretched.

    samples: [1 or more, C, T, P, Q] or [.., C, P, Q]
    returns: [T, P, Q, 3]
    """
    video = samples[0].float().cpu()
    video = video if video.ndim == 4 else video[:, None]
    low, high = (video[:3].flatten(1).quantile(q, dim=1)[:, None, None, None] for q in (0.02, 0.98))
    flat = ((video[:3] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).mean(0)
    return flat[..., None].expand(-1, -1, -1, 3)


def overlay(
    picture: Image.Image, share: Tensor, query: Tensor, dot: tuple[int, int] | None = None
) -> Image.Image:
    """The picture with the colours of the shares on it, and an outline around the query's tokens.

    share: [H, W] 0..1
    query: bool [H, W]
    dot: row and column of a token to mark
    """
    size = (picture.height, picture.width)
    share = torch.nn.functional.interpolate(share[None, None].float(), size, mode="nearest")[0, 0, ..., None]
    out = to_pil(coloured(to_tensor(picture), share))
    draw, (rows, columns) = ImageDraw.Draw(out), query.shape
    for row, column in query.nonzero().tolist():
        left, right = (round(i * out.width / columns) for i in (column, column + 1))
        top, bottom = (round(i * out.height / rows) for i in (row, row + 1))
        edges = (
            ((row - 1, column), (left, top, right, top)), ((row + 1, column), (left, bottom, right, bottom)),
            ((row, column - 1), (left, top, left, bottom)), ((row, column + 1), (right, top, right, bottom)),
        )  # fmt: skip
        for (i, j), line in edges:
            if not (0 <= i < rows and 0 <= j < columns and query[i, j]):
                draw.line(line, fill=QUERY, width=2)
    if dot:
        x, y = (dot[1] + 0.5) * out.width / columns, (dot[0] + 0.5) * out.height / rows
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=QUERY)
    return out


def coloured(picture: Tensor, share: Tensor) -> Tensor:
    """picture: [P, Q, 3]; share: [P, Q, 1] -> [P, Q, 3]"""
    colour = heat(0.3 + 0.7 * share[..., 0]) * (1 - SHINE + SHINE * picture)
    return torch.lerp(picture * DARK, colour, share.sqrt())


def draw_scale(canvas: Canvas, y: int) -> int:
    """The bar that says which colour is which share; returns the y below its numbers."""
    width, height = 300, 14
    ramp = torch.linspace(0, 1, width).expand(height, -1)[..., None]
    canvas.paste(MARGIN, y, to_pil(coloured(torch.full((height, width, 3), 0.6), ramp)))
    for value in (0, 25, 50, 75, 100):
        x = MARGIN + value * (width - 1) // 100 - text_width(f"{value}", 12) // 2
        canvas.write(max(MARGIN, x), y + height + 2, f"{value}", 12, FAINT)
    canvas.write(MARGIN + width + 20, y + height + 2, "% of the heads", 12, FAINT)
    return y + height + 2 + line_height(12)
