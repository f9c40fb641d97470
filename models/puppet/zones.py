"""Which zone of whose body a pixel shows, from its colour alone: so also of generated clips.

F frames   H rows   W columns   P puppets   L limbs   K colours   Z zones. Colours are RGB 0..1; distances are those of
RGB from -1 to 1, as models see pictures.

A colour under the light of Puppet World lies on a line from shade to light, so a pixel is as far from a colour as from
the nearest point of that line. A pixel shows the nearest colour, unless the empty place is nearer still or all are too
far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .body import LIMBS
from .scene import Puppet, SceneSpec
from .subset import empty
from .suit import LIMB_ZONES, ZONES, Colour, zone_of
from .world import World

LIGHT = (0.56, 1.06)  # least and most that `shade` multiplies a colour by
TOLERANCE = 0.6  # farther pixels show no zone
FOREGROUND = 0.5  # farther from the empty place is somebody. Under noise of 0.1 the IoU is 0.63, at 0.4 it is 0.43
ALIKE = 0.2  # colours that come this near in some light are one zone: skins, trousers and shoes
CHUNK = 1 << 20  # pixels at a time, about 100 MB
_CLOTHES = {"shirt": "shirt", "trousers": "trousers", "shoes": "trousers", "skin": "skin", "head": "skin"}


@dataclass(frozen=True)
class Palette:
    """colours: [K, 3]    zone: [K] index of the zone a colour belongs to, -1 for hair and patterns, which tell nothing
    names: of the Z zones    limb_zone: [P, L] zone that a limb shows    long: [Z] bool, zones that are one limb
    """

    colours: Tensor
    zone: Tensor
    names: tuple[str, ...]
    limb_zone: Tensor
    long: Tensor

    @property
    def zone_colours(self) -> Tensor:
        """A colour that each zone wears. returns: [Z, 3]"""
        return torch.stack([self.colours[self.zone == z][0] for z in range(len(self.names))])

    def distances(self, pixel: Tensor) -> Tensor:
        """From each pixel to each zone. pixel: [M, 3] -> [M, Z]"""
        to_colour = _to_colours(pixel, self.colours[self.zone >= 0])
        index = self.zone[self.zone >= 0].expand(len(pixel), -1)
        return torch.full((len(pixel), len(self.names)), float("inf")).scatter_reduce(1, index, to_colour, "amin")


def palette_of(spec: SceneSpec) -> Palette:
    """The colours that tell the people of a scene, and their limbs, apart.

    Zones of people whose colours are alike are one zone: they cannot be told apart by colour.
    """
    groups: list[list[tuple[int, str, Colour]]] = []
    limb_zone = torch.zeros(len(spec.puppets), len(LIMBS), dtype=torch.int64)
    for person, puppet in enumerate(spec.puppets):
        for i, limb in enumerate(LIMBS):
            entry = (person, ZONES[zone_of(limb)] if puppet.suit else _CLOTHES[limb.wear], puppet.garment(limb).colour)
            group = next((g for g in groups if any(_alike(entry[2], other) for *_, other in g)), None)
            if group is None:
                groups.append(group := [])
            if entry not in group:
                group.append(entry)
            limb_zone[person, i] = groups.index(group)
    flat = [(colour, zone) for zone, group in enumerate(groups) for colour in dict.fromkeys(c for *_, c in group)]
    flat += [(colour, -1) for puppet in spec.puppets for colour in _silent(puppet)]
    long = [len(g) == 1 and g[0][1] in [ZONES[i] for i in LIMB_ZONES] for g in groups]
    names = tuple(_name(group, len(spec.puppets) > 1) for group in groups)
    colours, zone = torch.tensor([c for c, _ in flat]).view(-1, 3), torch.tensor([z for _, z in flat])
    return Palette(colours, zone.long(), names, limb_zone, torch.tensor(long))


def places(world: World, tick: Callable[[int], None] = lambda done: None) -> Tensor:
    """The empty place, on a floor also with the shadows of people: a clip may show either.

    tick: called while it renders, as that of a World    returns: [1 or 2, F, H, W, 3]
    """
    kinds = (False, True) if world.spec.ground == "floor" else (False,)
    return torch.stack([replace(empty(world, shadows), tick=tick).rgb for shadows in kinds])


def read(clip: Tensor, palette: Palette, place: Tensor) -> tuple[Tensor, Tensor]:
    """What each pixel shows.

    clip: [F, H, W, 3]    place: [1 or 2, F, H, W, 3] of `places`
    returns: zone [F, H, W] int64, -1 where none; whether it shows somebody [F, H, W] bool
    """
    zones, bodies = [], []
    for span in _spans(clip):
        pixel = clip[span].flatten(0, 2)
        to_place = 2 * (pixel - place[:, span].flatten(1, 3)).norm(dim=-1).amin(0)
        nearest, colour = _to_colours(pixel, palette.colours).min(1)
        shown = (nearest <= TOLERANCE) & (nearest < to_place)
        zones.append(torch.where(shown, palette.zone[colour], -1).view(clip[span].shape[:3]))
        bodies.append((to_place > FOREGROUND).view(clip[span].shape[:3]))
    return torch.cat(zones), torch.cat(bodies)


def _to_colours(pixel: Tensor, colours: Tensor) -> Tensor:
    """Distance of each pixel to each colour in the light that suits it best. [M, 3], [K, 3] -> [M, K]"""
    product, power = pixel @ colours.t(), colours.square().sum(1)
    light = (product / power.clamp(min=1e-6)).clamp(*LIGHT)
    squared = pixel.square().sum(1, keepdim=True) - 2 * light * product + light.square() * power
    return 2 * squared.clamp(min=0).sqrt()


def _alike(a: Colour, b: Colour) -> bool:
    """Whether two colours come near each other in some light."""
    x, y = torch.tensor(a), torch.tensor(b)
    lit = torch.linspace(*LIGHT, 11)[:, None] * x
    return bool(_to_colours(lit, y[None]).min() < ALIKE)


def _silent(puppet: Puppet) -> list[Colour]:
    """Colours that are on the puppet and tell nothing."""
    if puppet.suit:
        return []
    return [puppet.hair] + ([] if puppet.pattern == "plain" else [puppet.garments()["shirt"].second])


def _name(group: list[tuple[int, str, Colour]], several: bool) -> str:
    people = sorted({person for person, *_ in group})
    what = " and ".join(dict.fromkeys(name for _, name, _ in group))
    if not several:
        return what
    return f"{what} of {' and '.join(str(person + 1) for person in people)}"


def _spans(clip: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK // (clip.shape[1] * clip.shape[2]))
    return (slice(first, first + step) for first in range(0, len(clip), step))
