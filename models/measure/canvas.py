"""A sheet to lay words and pictures on, as tall as what lies on it, which knows where every word is."""

from __future__ import annotations

from functools import lru_cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

PAPER = (250, 250, 248)
INK = (34, 36, 40)
FAINT = (120, 124, 130)
TEXT = 15  # pixels; readable when a 900 px picture is shown on a node about 450 px wide
HEADING = 20


@lru_cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def line_height(size: int) -> int:
    """From one line of text to the next, in pixels."""
    return size + size // 3


def text_width(text: str, size: int = TEXT) -> int:
    """Width of one line of text in pixels."""
    return int(font(size).getlength(text)) + 1


def cut(text: str, width: int, size: int = TEXT) -> str:
    """`text`, or as much of it as fits into `width` pixels with three dots behind."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrap(text: str, width: int, size: int = TEXT) -> list[str]:
    """`text` in lines of at most `width` pixels, broken at spaces; a single longer word is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [cut(line, width, size) for line in lines]


class Canvas:
    """Words and pictures by position. `words` and `pictures` keep the box of each for whoever lays out or checks."""

    def __init__(self, width: int):
        self.width = width
        self.words: list[tuple[Box, str, int, tuple]] = []
        self.pictures: list[tuple[Box, Image.Image]] = []

    def write(self, x: int, y: int, text: str, size: int = TEXT, colour: tuple = INK) -> Box:
        """One line of text with its left top corner at x, y."""
        box = (x, y, x + text_width(text, size), y + line_height(size))
        self.words.append((box, text, size, colour))
        return box

    def paste(self, x: int, y: int, picture: Image.Image) -> Box:
        """A picture with its left top corner at x, y."""
        box = (x, y, x + picture.width, y + picture.height)
        self.pictures.append((box, picture))
        return box

    def render(self, margin: int) -> Image.Image:
        """The sheet as an RGB picture that ends `margin` pixels below the lowest thing on it."""
        height = margin + max(box[3] for box, *_ in [*self.words, *self.pictures])
        sheet = Image.new("RGB", (self.width, height), PAPER)
        for box, picture in self.pictures:
            sheet.paste(picture, box[:2])
        draw = ImageDraw.Draw(sheet)
        for box, text, size, colour in self.words:
            draw.text(box[:2], text, font=font(size), fill=colour)
        return sheet


def to_pil(image: Tensor) -> Image.Image:
    """[H, W, C] float 0..1 -> an 8-bit RGB picture; one channel counts as grey, a fourth is left out."""
    rgb = image[..., :3].expand(-1, -1, 3) if image.shape[-1] < 3 else image[..., :3]
    pixels = (rgb.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes())


def to_tensor(picture: Image.Image) -> Tensor:
    """An 8-bit RGB picture -> [H, W, 3] float 0..1."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).float() / 255
