"""Which sampling run made a clip: fingerprints of graph nodes with everything upstream of them.

ComfyUI may serve a sampler's output from its cache, long after the same MODEL was sampled again with another seed. A
run is therefore kept under the fingerprint of its sampler node, and a clip asks for the runs upstream of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

GetNode = Callable[[str], "dict | None"]  # node id -> {"class_type", "inputs"} of the running graph, None if unknown


def fingerprint(get_node: GetNode, node_id: str, known: dict[str, str] | None = None) -> str:
    """A digest of the node's class and inputs, where an input link counts as the fingerprint of its source.

    Node ids are no part of it, so that the digest survives a renumbered graph.
    known: digests by node id, filled while walking (each node is visited once)
    """
    known = {} if known is None else known
    if node_id not in known:
        node = get_node(node_id) or {}
        inputs = {
            name: [fingerprint(get_node, str(value[0]), known), value[1]] if is_link(get_node, value) else value
            for name, value in node.get("inputs", {}).items()
        }
        text = json.dumps([node.get("class_type"), inputs], sort_keys=True, default=str)
        known[node_id] = hashlib.sha256(text.encode()).hexdigest()
    return known[node_id]


def upstream(get_node: GetNode, node_id: str, name: str) -> frozenset[str]:
    """Fingerprints of all nodes that the input `name` of a node depends on; empty if it is not linked."""
    link = (get_node(node_id) or {}).get("inputs", {}).get(name)
    if not is_link(get_node, link):
        return frozenset()
    known: dict[str, str] = {}
    fingerprint(get_node, str(link[0]), known)
    return frozenset(known.values())


def is_link(get_node: GetNode, value: object) -> bool:
    """True for [node id, output number] with a node of this graph."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
    return pair and get_node(str(value[0])) is not None
