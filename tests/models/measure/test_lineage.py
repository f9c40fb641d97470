"""A run is recognised by what its sampler was fed with, not by node numbers or by being the last."""

from interspatial.models.measure.lineage import fingerprint, upstream


def graph(seed=1, prefix="", steps=4):
    """model -> measure -> sampler -> decode -> compare, and a second clip from a file."""
    nodes = {
        "model": ("Loader", {"name": "tiny"}),
        "measure": ("Measure", {"model": ["model", 0]}),
        "sampler": ("KSampler", {"model": ["measure", 0], "seed": seed, "steps": steps}),
        "decode": ("VAEDecode", {"samples": ["sampler", 0]}),
        "file": ("LoadVideo", {"name": "a.mp4"}),
        "compare": ("Compare", {"reference": ["file", 0], "test": ["decode", 0], "label": "x"}),
    }

    def rename(value):
        return [prefix + value[0], value[1]] if isinstance(value, list) else value

    named = {prefix + name: {"class_type": kind, "inputs": {k: rename(v) for k, v in inputs.items()}}
             for name, (kind, inputs) in nodes.items()}
    return named.get


def test_node_numbers_do_not_matter():
    assert fingerprint(graph(), "sampler") == fingerprint(graph(prefix="9:"), "9:sampler")


def test_every_setting_upstream_matters():
    seen = {fingerprint(graph(seed, "", steps), "decode") for seed in (1, 2) for steps in (4, 5)}
    assert len(seen) == 4


def test_a_clip_knows_the_sampler_it_came_from():
    assert fingerprint(graph(), "sampler") in upstream(graph(), "compare", "test")
    assert fingerprint(graph(seed=2), "sampler") not in upstream(graph(), "compare", "test")
    assert fingerprint(graph(), "sampler") not in upstream(graph(), "compare", "reference")


def test_what_is_no_link_has_no_ancestors():
    assert upstream(graph(), "compare", "label") == frozenset()
    assert upstream(graph(), "compare", "missing") == frozenset()
    assert upstream(graph(), "missing", "test") == frozenset()


def test_a_list_that_names_no_node_is_a_value():
    nodes = {"a": {"class_type": "X", "inputs": {"curve": ["b", 0]}}}
    assert fingerprint(nodes.get, "a") == fingerprint(nodes.get, "a")
    nodes["b"] = {"class_type": "Y", "inputs": {}}
    assert len(upstream(nodes.get, "a", "curve")) == 1


def test_each_node_is_visited_once():
    nodes = {"0": {"class_type": "Zero", "inputs": {}}}
    for i in range(1, 60):
        nodes[str(i)] = {"class_type": "Add", "inputs": {"a": [str(i - 1), 0], "b": [str(i - 1), 0]}}
    assert len(upstream(nodes.get, "59", "a")) == 59   # 2^59 paths
