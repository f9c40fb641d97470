"""Lay out a workflow: from a sketch in API form to the graph file that the frontend opens.

A sketch is the API form with two freedoms: node ids are words, and `_meta` may hold `title`, `group` (the title of the
coloured box around the node) and `column` (its place in the group, from 0). Notes are nodes of class MarkdownNote with
the input `text`:

    {"model": {"class_type": "UNETLoader", "inputs": {"unet_name": "..."}, "_meta": {"group": "Load"}},
     "about": {"class_type": "MarkdownNote", "inputs": {"text": "## What this shows"}}, ...}

Groups stand side by side in the order of the data flow. Inside a group a node without a `column` stands right of all
that feeds it; nodes of one column stand below each other in the order of the sketch. Notes without a group stand left
of everything.

`python devtools/convert.py --sketch sketch.json workflows/NN_name.json` writes both forms.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from .widgets import NodeInput, node_inputs

NOTE = "MarkdownNote"
TITLE = 30          # pixels of the title bar, which the frontend draws above `pos`
ROW, WIDGET = 20, 28      # pixels per socket and per one-line widget, with which both of the frontend's renderers do
TEXT_BOX, PREVIEW = 130, 340      # pixels of a multi-line widget and of a picture or video on an output node
NARROW, WIDE, NOTE_WIDTH = 270, 340, 420
GAP, PADDING = 60, 30      # between columns and nodes; between a group's edge and its nodes
COLORS = ("#3f789e", "#8A8", "#b58b2a", "#a1309b", "#88A", "#b06634")      # the frontend's own group palette


class SketchError(ValueError):
    """A sketch that cannot become a workflow; the message names the node."""


@dataclass
class Box:
    """One node of the sketch with everything the layout needs. Lengths in canvas pixels."""

    key: str
    kind: str
    values: dict
    title: str
    group: str
    inputs: list[NodeInput]
    output_names: list[str]
    output_types: list[str]
    shows: bool      # an output node: the frontend shows a picture, a video or text on it
    column: int | None = None      # the author's choice
    number: int = 0
    position: list[int] = field(default_factory=lambda: [0, 0])
    size: list[int] = field(default_factory=lambda: [0, 0])
    schema: dict = field(default_factory=dict)

    def links(self) -> list[tuple[str, str, int]]:
        """(input name, source key, source slot) of every linked input."""
        return [(n, str(v[0]), v[1]) for n, v in self.values.items() if isinstance(v, list) and len(v) == 2]


def workflow_from_sketch(sketch: dict, object_info: dict, name: str, versions: dict[str, str] | None = None) -> dict:
    """The graph file's content.

    name: makes the workflow id, so that the same sketch gives the same file.
    versions: {"comfy-core": "...", "interspatial": "..."}, written where the frontend looks for missing packs.
    Raises SketchError.
    """
    boxes = [make_box(key, entry, object_info) for key, entry in sketch.items()]
    for number, box in enumerate(boxes, start=1):
        box.number = number
        box.size = node_size(box)
        check_links(box, {b.key: b for b in boxes})
    groups = place(boxes)
    nodes, links = write_nodes(boxes, versions or {})
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"interspatial/{name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def make_box(key: str, entry: dict, object_info: dict) -> Box:
    kind, values, meta = entry["class_type"], entry.get("inputs", {}), entry.get("_meta", {})
    title, group, column = meta.get("title", ""), meta.get("group", ""), meta.get("column")
    if kind == NOTE:
        return Box(key, kind, values, title, group, [], [], [], shows=False, column=column)
    if kind not in object_info:
        raise SketchError(f"Node '{key}': ComfyUI has no node class {kind}.")
    schema = object_info[kind]
    inputs = list(node_inputs(schema, values))
    unknown = set(values) - {i.name for i in inputs}
    if unknown:
        accepted = ", ".join(i.name for i in inputs)
        raise SketchError(f"Node '{key}': {kind} has no input {sorted(unknown)}. It has: {accepted}.")
    names, types = schema["output_name"], [t if isinstance(t, str) else "COMBO" for t in schema["output"]]
    shows = schema["output_node"]
    return Box(key, kind, values, title, group, inputs, names, types, shows, column=column, schema=schema)


def check_links(box: Box, by_key: dict[str, Box]) -> None:
    for name, source, slot in box.links():
        if source not in by_key:
            raise SketchError(f"Node '{box.key}': input {name} comes from '{source}', which is not in the sketch.")
        if not 0 <= slot < len(by_key[source].output_types):
            raise SketchError(f"Node '{box.key}': input {name} wants output {slot} of '{source}', which it has not.")


def node_size(box: Box) -> list[int]:
    """Width and height, a little above what the frontend needs: it enlarges nodes, never shrinks them."""
    if box.kind == NOTE:
        lines = sum(1 + len(line) // 48 for line in box.values.get("text", "").splitlines())
        return [NOTE_WIDTH, 70 + 20 * lines]
    widgets = [i for i in box.inputs if i.widget]
    sockets = len(box.inputs) - len(widgets)
    texts = sum(i.multiline for i in widgets)
    lines = len(widgets) - texts + sum(i.seed_control for i in widgets)
    height = 16 + ROW * max(sockets, len(box.output_names)) + WIDGET * lines + TEXT_BOX * texts
    return [WIDE if widgets or box.shows else NARROW, height + PREVIEW * box.shows]


def place(boxes: list[Box]) -> list[dict]:
    """Set every position; returns the group rectangles of the graph file."""
    titles = list(dict.fromkeys(b.group for b in boxes))      # order of first appearance
    group_of = {b.key: b.group for b in boxes}
    feeds = {t: {group_of[s] for b in boxes if b.group == t for _, s, _ in b.links()} - {t} for t in titles}
    columns = in_columns(depths(titles, feeds, "groups"))
    if all(b.kind == NOTE for b in boxes if not b.group):      # loose notes: left of everything
        columns = [[t for t in titles if not t], *([t for t in column if t] for column in columns)]
    groups, x = [], 0
    for column in filter(None, columns):
        y, widest = 0, 0
        for title in column:
            members = [b for b in boxes if b.group == title]
            width, height = place_members(members, x + PADDING, y + PADDING + 2 * TITLE)
            box = [x, y, width + 2 * PADDING, height + 2 * PADDING + 2 * TITLE]      # the group's title and a node's
            if title:
                color = COLORS[len(groups) % len(COLORS)]
                groups.append({"id": len(groups) + 1, "title": title, "bounding": box, "color": color, "flags": {}})
            y += box[3] + GAP
            widest = max(widest, box[2])
        x += widest + GAP
    return groups


def place_members(members: list[Box], left: int, top: int) -> tuple[int, int]:
    """Columns by depth inside one group, nodes of a column below each other. Returns the width and height used."""
    by_key = {b.key: b for b in members}
    feeds = {b.key: {source for _, source, _ in b.links() if source in by_key} for b in members}
    x, lowest = left, top
    depth = depths(list(by_key), feeds, "nodes")
    for column in in_columns({b.key: depth[b.key] if b.column is None else b.column for b in members}):
        y = top
        for key in column:
            by_key[key].position = [x, y]
            y += by_key[key].size[1] + TITLE + GAP // 2
        lowest = max(lowest, y - TITLE - GAP // 2)
        x += max(by_key[key].size[0] for key in column) + GAP
    return x - GAP - left, lowest - top


def depths(keys: list[str], feeds: dict[str, set[str]], what: str) -> dict[str, int]:
    """How many steps each key stands behind its furthest source. Raises SketchError on a circle."""
    depth: dict[str, int] = {}
    while len(depth) < len(keys):
        ready = [k for k in keys if k not in depth and feeds[k] <= depth.keys()]
        if not ready:
            stuck = sorted(set(keys) - depth.keys())
            raise SketchError(f"These {what} feed each other in a circle, or hang on one: {stuck}.")
        depth.update({k: 1 + max((depth[f] for f in feeds[k]), default=-1) for k in ready})
    return {key: depth[key] for key in keys}


def in_columns(depth: dict[str, int]) -> list[list[str]]:
    """Keys of the same depth together, the shallowest first."""
    return [[key for key in depth if depth[key] == step] for step in sorted(set(depth.values()))]


def write_nodes(boxes: list[Box], versions: dict[str, str]) -> tuple[list[dict], list[list]]:
    """Nodes and links of the graph file; positions, sizes and numbers are set."""
    by_key = {b.key: b for b in boxes}
    nodes = {b.key: node_entry(b, order, versions) for order, b in enumerate(boxes)}
    links: list[list] = []
    for box in boxes:
        entry = nodes[box.key]
        linked = {name: (source, slot) for name, source, slot in box.links()}
        for item in box.inputs:
            if item.widget and item.name not in linked:
                continue
            socket = {"name": item.name, "type": item.type, "link": None}
            if item.widget:
                socket["widget"] = {"name": item.name}
            if item.name in linked:
                source, slot = linked[item.name]
                number = len(links) + 1
                kind = by_key[source].output_types[slot]
                links.append([number, by_key[source].number, slot, box.number, len(entry["inputs"]), kind])
                nodes[source]["outputs"][slot]["links"].append(number)
                socket["link"] = number
            entry["inputs"].append(socket)
    return list(nodes.values()), links


def node_entry(box: Box, order: int, versions: dict[str, str]) -> dict:
    outputs = [
        {"name": name, "type": kind, "links": []} for name, kind in zip(box.output_names, box.output_types, strict=True)
    ]
    entry = {
        "id": box.number,
        "type": box.kind,
        "pos": box.position,
        "size": box.size,
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": outputs,
        "properties": properties(box, versions),
        "widgets_values": widget_values(box),
    }
    if box.title:
        entry["title"] = box.title
    return entry


def properties(box: Box, versions: dict[str, str]) -> dict:
    if box.kind == NOTE:
        return {}
    core = not box.schema.get("python_module", "").startswith("custom_nodes.")
    pack = "comfy-core" if core else "interspatial"
    found = {"Node name for S&R": box.kind}
    if pack in versions:
        found |= {"cnr_id": pack, "ver": versions[pack]}
    return found


def widget_values(box: Box) -> list:
    if box.kind == NOTE:
        return [box.values.get("text", "")]
    values = []
    for item in box.inputs:
        if item.widget:
            value = box.values.get(item.name, item.default)
            values.append(item.default if isinstance(value, list) else value)      # linked: keeps its default
            if item.seed_control:
                values.append("fixed")
    return values
