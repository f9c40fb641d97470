"""Laying out a sketch: values in the frontend's order, nodes apart and in their groups, refusals that name the node."""

from __future__ import annotations

from itertools import combinations

import pytest
from interspatial.devtools.layout_workflow import TITLE, SketchError, workflow_from_sketch
from interspatial.devtools.widgets import node_inputs

WINDOW = {"required": {"start": ["FLOAT", {"default": 0.1}]}, "optional": {"end": ["FLOAT", {"default": 0.9}]}}
MODE = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "off", "inputs": {}}, {"key": "window", "inputs": WINDOW}]}]


def schema(inputs: dict, *outputs: str, shows: bool = False) -> dict:
    return {"input": inputs, "output": outputs, "output_name": outputs, "output_node": shows, "python_module": "nodes"}


INFO = {
    "Load": schema({"required": {"file": [["a", "b"], {}]}}, "MODEL"),
    "Patch": schema({"required": {"model": ["MODEL"], "mode": MODE}, "optional": {"seed": ["INT", {}]}}, "MODEL"),
    "Render": schema({"required": {"model": ["MODEL", {}], "steps": ["INT", {"default": 20}]}}, "VIDEO"),
    "Number": schema({"required": {"value": ["INT", {"default": 1}]}}, "INT"),
    "Save": schema({"required": {"video": ["VIDEO", {}], "text": ["STRING", {"multiline": True}]}}, shows=True),
}


def entry(kind: str, group: str = "", column: int | None = None, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"group": group, "column": column}}


SKETCH = {
    "about": entry("MarkdownNote", text="line\n" * 9),
    "load": entry("Load", "Load", file="b"),
    "steps": entry("Number", "Load", value=8),
    "patch": entry("Patch", "Sparse", model=["load", 0], mode="window", **{"mode.start": 0.3}),
    "sparse": entry("Render", "Sparse", model=["patch", 0], steps=["steps", 0]),
    "dense": entry("Render", "Dense", model=["load", 0], steps=4),
    "one": entry("Save", "Sparse", column=1, video=["sparse", 0], text="a"),
    "two": entry("Save", "Dense", video=["dense", 0], text="b"),
}


@pytest.fixture
def workflow() -> dict:
    return workflow_from_sketch(SKETCH, INFO, "test")


def node_of(workflow: dict, key: str) -> dict:
    return workflow["nodes"][list(SKETCH).index(key)]


def area(node: dict) -> tuple[float, float, float, float]:
    """left, top, right, bottom with the title bar"""
    return node["pos"][0], node["pos"][1] - TITLE, node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]


def test_values_stand_in_the_frontends_order(workflow: dict):
    # The chosen option's inputs follow their combo; `seed` brings its control; `start` is given, the others rest.
    assert node_of(workflow, "patch")["widgets_values"] == ["window", 0.3, 0.9, None, "fixed"]
    assert node_of(workflow, "load")["widgets_values"] == ["b"]
    assert [i.name for i in node_inputs(INFO["Patch"], {"mode": "off"})] == ["model", "mode", "seed"]


def test_a_linked_widget_keeps_its_place(workflow: dict):
    sparse = node_of(workflow, "sparse")
    assert sparse["widgets_values"] == [20]
    assert [(i["name"], "widget" in i) for i in sparse["inputs"]] == [("model", False), ("steps", True)]


def test_links_agree_with_both_ends(workflow: dict):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(workflow["links"]) == 6
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert kind == nodes[source]["outputs"][slot]["type"] == nodes[target]["inputs"][place]["type"]


def test_nodes_stand_apart_and_inside_their_group(workflow: dict):
    for a, b in combinations(workflow["nodes"], 2):
        (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = area(a), area(b)
        assert right_a <= left_b or right_b <= left_a or bottom_a <= top_b or bottom_b <= top_a, (a["type"], b["type"])
    boxes = {group["title"]: group["bounding"] for group in workflow["groups"]}
    assert list(boxes) == ["Load", "Sparse", "Dense"]
    for key, sketched in SKETCH.items():
        if group := sketched["_meta"]["group"]:
            x, y, width, height = boxes[group]
            left, top, right, bottom = area(node_of(workflow, key))
            assert x < left and right < x + width and y + TITLE <= top and bottom < y + height


def test_data_flows_to_the_right(workflow: dict):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    about = nodes[1]["pos"][0]
    assert all(about < node["pos"][0] for node in workflow["nodes"][1:]), "loose notes stand left of everything"
    for _, source, _, target, *_ in workflow["links"]:
        same_column = (nodes[source]["type"], nodes[target]["type"]) == ("Render", "Save") and target == 7
        assert same_column or nodes[source]["pos"][0] < nodes[target]["pos"][0]


def test_same_sketch_same_file(workflow: dict):
    assert workflow == workflow_from_sketch(SKETCH, INFO, "test")
    assert workflow["id"] != workflow_from_sketch(SKETCH, INFO, "other")["id"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"load": entry("Lod")}, "Node 'load': ComfyUI has no node class Lod."),
        ({"load": entry("Load", fle="a")}, "no input ['fle']. It has: file."),
        ({"dense": entry("Render", model=["lod", 0])}, "'lod', which is not in the sketch"),
        ({"dense": entry("Render", model=["load", 1])}, "output 1 of 'load', which it has not"),
        ({"load": entry("Patch", "Sparse", model=["patch", 0])}, "These nodes feed each other in a circle"),
        ({"load": entry("Patch", "Load", model=["patch", 0])}, "These groups feed each other in a circle"),
    ],
    ids=["class", "input", "source", "slot", "nodes in a circle", "groups in a circle"],
)
def test_refusals_are_sentences(changes: dict, sentence: str):
    with pytest.raises(SketchError) as refused:
        workflow_from_sketch({**SKETCH, **changes}, INFO, "test")
    assert sentence in str(refused.value)
