"""The picture of what tokens listen to: each token in the colour of its loudest point's body part, over the frames."""

# F latent frames   h w token grid   P Q pixel rows and columns

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..control.body import NO_PART
from ..puppet.body import PARTS
from ..puppet.views import PART_COLOURS
from .canvas import FAINT, HEADING, TEXT, Canvas, line_height, text_width, to_pil, to_tensor, wrap
from .looks_picture import choose_frames
from .picture import MARGIN, write_lines
from .point_listening import NEAR, Heard

WIDTH = 960
TILE = (220, 220)  # most that a frame may take, width and height in pixels
MOST, GAP = 4, 10
DARK = 0.45  # brightness that is left of the frame below the colours
FAINTEST, MIDDLE, STRONGEST = 0.12, 0.45, 0.85  # of the colour: off the bodies, and on them from quiet to loud
LOUD = 0.95  # quantile of the shares that gets the strongest colour
UNKNOWN = (0.8, 0.8, 0.8)  # of points whose part is not known
WRONG = (255, 255, 255)


def draw_heard(heard: Heard, frames: Tensor, lines: list[str]) -> Tensor:
    """The sheet. frames: [F', P, Q, 3] 0..1, the first and last those of the video    returns: [height, width, 3]"""
    return to_tensor(lay_out(heard, frames, lines).render(MARGIN))


def lay_out(heard: Heard, frames: Tensor, lines: list[str]) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas, inside = Canvas(WIDTH), WIDTH - 2 * MARGIN
    y = write_lines(canvas, MARGIN, ["What each token listens to"], HEADING) + 4
    y = write_lines(canvas, y, [line for text in lines for line in wrap(text, inside)]) + 10
    scale = min(TILE[0] / frames.shape[2], TILE[1] / frames.shape[1])
    size = max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale))
    pitch = max(size[0], text_width("latent frame 100")) + GAP
    count = min(MOST, (inside + GAP) // pitch)
    shown = choose_frames(heard.grid[0], heard.grid[0] // 2, count)
    for i, frame in enumerate(shown):
        canvas.write(MARGIN + i * pitch, y, f"latent frame {frame}", colour=FAINT)
    y += line_height(TEXT) + 2
    for name, draw in ROWS.items():
        y = write_lines(canvas, y, [name])
        for i, frame in enumerate(shown):
            canvas.paste(MARGIN + i * pitch, y, draw(heard, frame, picture_of(frames, frame, heard.grid[0], size)))
        y += size[1] + GAP
    _legend(canvas, y, inside)
    return canvas


def picture_of(frames: Tensor, latent: int, latents: int, size: tuple[int, int]) -> Image.Image:
    """The grey, dark frame of a latent frame."""
    frame = frames[round(latent * (len(frames) - 1) / max(1, latents - 1))].float().mean(-1, keepdim=True)
    return to_pil(frame * DARK).resize(size, Image.Resampling.BICUBIC)


def dots(heard: Heard, frame: int, picture: Image.Image) -> Image.Image:
    """A dot for each usable point, far ones first."""
    draw = ImageDraw.Draw(picture)
    place, colours = heard.tokens.place[frame], _colours(heard.tokens.part)
    for i in place[:, 2].argsort(descending=True).tolist():
        if heard.tokens.usable[frame, i]:
            x, y = _pixel(place[i], picture)
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=_bytes(colours[i]))
    return picture


def parts(heard: Heard, frame: int, picture: Image.Image) -> Image.Image:
    """Tokens in their colours: strong on a body, more so where the loudest point has more of the attention."""
    _, h, w = heard.grid
    if not heard.tokens.usable[frame].any():
        return picture
    near, loudest = heard.distances(frame) <= NEAR, heard.loudest[frame]
    share = heard.share[frame] / heard.share.quantile(LOUD).clamp(min=1e-9)
    strength = torch.where(near.any(1), MIDDLE + (STRONGEST - MIDDLE) * share.clamp(max=1), FAINTEST)
    maps = torch.cat([strength[:, None], _colours(heard.tokens.part)[loudest]], 1).T.view(1, 4, h, w)
    maps = torch.nn.functional.interpolate(maps, (picture.height, picture.width), mode="nearest")[0].movedim(0, -1)
    out = to_pil(torch.lerp(to_tensor(picture), maps[..., 1:], maps[..., :1]))
    draw = ImageDraw.Draw(out)
    wrong = near.any(1) & ~near.gather(1, loudest[:, None])[:, 0]
    for token in wrong.nonzero()[:, 0].tolist():
        start = ((token % w + 0.5) * out.width / w, (token // w + 0.5) * out.height / h)
        draw.line([start, _pixel(heard.tokens.place[frame, loudest[token]], out)], fill=WRONG, width=1)
    return out


ROWS = {
    "The body's points as the camera sees them": dots,
    "The part that each token's loudest point is of, and lines to points that are elsewhere": parts,
}


def _pixel(place: Tensor, picture: Image.Image) -> tuple[float, float]:
    return float((place[0] + 1) / 2 * picture.width), float((place[1] + 1) / 2 * picture.height)


def _colours(part: Tensor) -> Tensor:
    """part: [M] -> [M, 3]"""
    return torch.tensor([*PART_COLOURS, UNKNOWN])[part.clamp(max=NO_PART)]


def _bytes(colour: Tensor) -> tuple[int, ...]:
    return tuple(round(255 * float(c)) for c in colour)


def _legend(canvas: Canvas, y: int, inside: int) -> None:
    x = MARGIN
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        name = part.replace("_", " ")
        width = text_width(name, 12) + 26
        if x + width > MARGIN + inside:
            x, y = MARGIN, y + line_height(12)
        canvas.paste(x, y + 3, Image.new("RGB", (10, 10), _bytes(torch.tensor(colour))))
        canvas.write(x + 14, y, name, 12, FAINT)
        x += width
