"""The sizes that the GPU bench measures: grids, heads and text tokens of the models that people run."""

from __future__ import annotations

from dataclasses import dataclass

from interspatial.models.layout import TokenLayout, arrange

from bench.gpu.stage import Bench


@dataclass(frozen=True)
class Shape:
    """grid: latent frames, rows, columns of tokens    text: tokens behind the video's, 0 where it has its own calls"""

    name: str
    grid: tuple[int, int, int]
    heads: int
    dim: int
    text: int = 0

    @property
    def layout(self) -> TokenLayout:
        return arrange([("video", self.grid), ("text", self.text)])

    @property
    def tokens(self) -> int:
        return self.layout.tokens

    @property
    def flops(self) -> float:
        """Of dense attention: two products of 2 N N D a head."""
        return 4.0 * self.tokens**2 * self.heads * self.dim

    def small(self) -> Shape:
        """The same kind at a size that a CPU core does in a moment; ragged tiles, a text of odd length."""
        return Shape(self.name, (5, 11, 14), 2, self.dim, 7 if self.text else 0)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("wan720", (21, 45, 80), 40, 128),
        Shape("hunyuan720", (33, 45, 80), 24, 128, 256),
        Shape("wan480", (21, 30, 52), 40, 128),
        Shape("cogvideox15", (11, 48, 85), 48, 64, 226),
        Shape("wan768", (21, 48, 80), 40, 128),
        Shape("hunyuan768", (33, 48, 80), 24, 128, 256),
        Shape("sol128k", (32, 50, 80), 24, 128),
        Shape("opensora93f", (24, 45, 80), 24, 128),
        Shape("cogvideox2b", (13, 30, 45), 30, 64, 226),
    )
}


def shape_of(name: str, bench: Bench) -> Shape:
    return SHAPES[name].small() if bench.smoke else SHAPES[name]
