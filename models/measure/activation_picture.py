"""The picture of activation statistics: salience and size of what enters each layer, over the blocks, by role."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ..quant.calibration import Calibration
from ..quant.layers import block_of_layer, role_of_layer
from ..quant.lrq import SALIENT
from ..quant.stats import LayerStats
from .canvas import HEADING, TEXT, Canvas, cut, line_height, text_width, to_tensor, wrap
from .curves import Curve, colour_of, plot_curves
from .picture import MARGIN, write_lines

WIDTH = 900  # pixels
SWATCH = 14
NAMED = 8  # layers and channels that the report names, the most salient first
FLAT, STEEP = 1e-3, 1e4  # of the largest value, and at all: what is below or above stays at the edge


def draw_activations(found: Calibration, lines: Sequence[str]) -> Tensor:
    """The sheet. lines: of text under the heading; returns: [height, width, 3]"""
    return to_tensor(lay_out(found, lines).render(MARGIN))


def lay_out(found: Calibration, lines: Sequence[str]) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas = Canvas(WIDTH)
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, ["What enters the linear layers"], HEADING) + 4
    y = write_lines(canvas, y, [line for text in lines for line in wrap(text, inside)]) + 12
    roles = by_role(found)
    y = draw_legend(canvas, y, list(roles)) + 10
    kappa = {role: {at: stats.salience for at, stats in layers.items()} for role, layers in roles.items()}
    most = max(value for values in kappa.values() for value in values.values())
    titles = (f"salience: largest channel over the median one (dashed: {SALIENT:g}, salient)", "block")
    span = (1.0, min(STEEP, max(SALIENT, most)))
    y = plot_curves(canvas, MARGIN, y, inside, curves(kappa), titles, span, logarithmic=True, level=SALIENT) + 16
    size = {role: {at: stats.rms for at, stats in layers.items()} for role, layers in roles.items()}
    values = [value for each in size.values() for value in each.values()]
    high = min(STEEP, max(*values, 2.0))
    titles = ("size: root mean square (dashed: 1, where LRQ-DiT changes its rotation)", "block")
    span = (min(0.5, max(min(values), FLAT * high)), high)
    plot_curves(canvas, MARGIN, y, inside, curves(size), titles, span, logarithmic=True, level=1.0)
    return canvas


def by_role(found: Calibration) -> dict[str, dict[int, LayerStats]]:
    """Statistics by role and number of the block, counted on through all stacks of a model with several."""
    layers = {layer: block_of_layer(layer) for layer in found.layers}
    numbers = {block: i for i, block in enumerate(dict.fromkeys(layers.values()))}
    several = len({stack for stack, _ in layers.values()}) > 1
    roles: dict[str, dict[int, LayerStats]] = {}
    for layer, block in layers.items():
        role = f"{block[0]}.{role_of_layer(layer)}" if several else role_of_layer(layer)
        roles.setdefault(role, {})[numbers[block]] = found.layers[layer]
    return joined(roles)


def joined(roles: dict[str, dict[int, LayerStats]]) -> dict[str, dict[int, LayerStats]]:
    """The same, with roles that read the same tensor as one: "self_attn.k q v"."""
    found: dict[str, dict[int, LayerStats]] = {}
    for role, layers in roles.items():
        front, _, last = role.rpartition(".")
        twin = next((name for name in found if name.startswith(f"{front}.") and same(found[name], layers)), None)
        if twin is None:
            found[role] = layers
        else:
            found = {f"{name} {last}" if name == twin else name: each for name, each in found.items()}
    return found


def same(a: dict[int, LayerStats], b: dict[int, LayerStats]) -> bool:
    """True for layers of two roles that have seen the same activations."""
    return a.keys() == b.keys() and all(a[i].peak.equal(b[i].peak) and a[i].power.equal(b[i].power) for i in a)


def curves(values: dict[str, dict[int, float]]) -> list[Curve]:
    """A curve for each role; where there is one block, a level line."""
    found = []
    for number, places in enumerate(values.values()):
        points = tuple(sorted(places.items()))
        points = points if points[-1][0] else (*points, (1, points[0][1]))
        found.append(Curve(points, colour_of(number)))
    return found


def draw_legend(canvas: Canvas, y: int, roles: Sequence[str]) -> int:
    """Colour and name of each role, as many a row as fit; returns the y below."""
    inside = canvas.width - 2 * MARGIN
    column = min(inside, SWATCH + 24 + max(text_width(role) for role in roles))
    columns = max(1, inside // column)
    for i, role in enumerate(roles):
        x, top = MARGIN + i % columns * column, y + i // columns * (line_height(TEXT) + 4)
        canvas.paste(x, top + 3, Image.new("RGB", (SWATCH, SWATCH), colour_of(i)))
        canvas.write(x + SWATCH + 8, top, cut(role, column - SWATCH - 10))
    return y + -(-len(roles) // columns) * (line_height(TEXT) + 4)


def describe(found: Calibration) -> list[str]:
    """What was found, in words."""
    about, layers = found.about, found.layers
    tokens = about.get("tokens", [])
    blocks = len({block_of_layer(layer) for layer in layers})
    lines = [
        f"{about.get('model') or 'unknown model'}: layers: {len(layers)}, blocks: {blocks}, runs: "
        f"{about.get('runs', '?')}, tokens of a layer: up to {sum(tokens)}, parts of the noise range: {found.bins}",
        *salient_lines(found),
    ]
    sizes = sorted(stats.rms for stats in layers.values())
    large = sum(size >= 1 for size in sizes)
    lines.append(f"root mean square {sizes[0]:.3g} to {sizes[-1]:.3g}, 1 or more in {large} layers")
    products = sum(stats.gram is not None for stats in layers.values())
    lines.append(f"products of channels for error feedback: kept of {products} layers" if products else
                 "products of channels for error feedback: none")  # fmt: skip
    if empty := [i for i, count in enumerate(tokens) if not count]:
        parts = ", ".join(f"{100 * i // found.bins} to {100 * (i + 1) // found.bins} %" for i in empty)
        lines.append(f"no step fell into {parts} of the noise range: these have the values of the nearest part")
    if unseen := about.get("unseen"):
        lines.append(f"never ran, and without statistics: {listed(unseen)}")
    return lines


def salient_lines(found: Calibration) -> list[str]:
    """Which layers have salient channels, and which channels."""
    kappa = {layer: stats.salience for layer, stats in found.layers.items()}
    order = sorted(kappa, key=kappa.__getitem__, reverse=True)
    salient = [layer for layer in order if kappa[layer] > SALIENT]
    if not salient:
        return [f"no layer has salient channels; the most are in {order[0]}, {kappa[order[0]]:.1f} times the median"]
    lines = [f"channels above {SALIENT:g} times the median in {len(salient)} of {len(kappa)} layers:"]
    for layer in salient[:NAMED]:
        peaks = found.layers[layer].peaks
        channels = (peaks > SALIENT * peaks.median()).nonzero().flatten().tolist()
        channels.sort(key=lambda i, peaks=peaks: -float(peaks[i]))
        lines.append(f"  {layer}: {kappa[layer]:.0f} times, channels {listed(channels)}")
    if len(salient) > NAMED:
        lines.append(f"  and {len(salient) - NAMED} more")
    return lines


def listed(items: Sequence) -> str:
    """The first items, and how many more there are."""
    more = len(items) - NAMED
    return ", ".join(map(str, items[:NAMED])) + (f" and {more} more" if more > 0 else "")
