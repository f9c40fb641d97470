"""What the frontend makes of a node's schema: sockets and widgets, in the order in which it stores their values.

Source of the rules: the frontend's own graph-to-prompt conversion, which tests/test_frontend.py compares with ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
GROWING = "COMFY_AUTOGROW_V3"


@dataclass(frozen=True)
class NodeInput:
    """One input. `widget`: it has a place in `widgets_values`. `name`: dotted inside a dynamic combo."""

    name: str
    type: str
    widget: bool
    options: dict

    @property
    def default(self) -> object:
        choices = self.options.get("options") or [None]
        first = choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
        return self.options.get("default", first)

    @property
    def multiline(self) -> bool:
        return bool(self.options.get("multiline"))

    @property
    def seed_control(self) -> bool:
        """Whether a fixed/increment/randomize widget follows, with a value of its own in `widgets_values`."""
        flagged = self.options.get("control_after_generate")
        return bool(flagged) if flagged is not None else self.type == "INT" and self.name in ("seed", "noise_seed")


def node_inputs(schema: dict, values: dict) -> Iterator[NodeInput]:
    """The inputs of a node whose API values are `values`: required, then optional, chosen combo options opened.

    schema: the node's entry in /object_info
    """
    yield from section_inputs(schema["input"], values, prefix="")


def section_inputs(definitions: dict, values: dict, prefix: str) -> Iterator[NodeInput]:
    for section in ("required", "optional"):
        for name, spec in (definitions.get(section) or {}).items():
            yield from one_input(prefix + name, spec, values)


def one_input(name: str, spec: list, values: dict) -> Iterator[NodeInput]:
    kind = spec[0]
    options = spec[1] if len(spec) > 1 else {}
    if isinstance(kind, list):      # a combo in the older notation: the type is the list of choices
        kind, options = "COMBO", {"options": kind, **options}
    if kind == GROWING:      # one socket per value given; the frontend adds the empty one
        yield from (NodeInput(key, "*", False, {}) for key in values if key.startswith(name + "."))
        return
    forced = options.get("forceInput") or options.get("defaultInput")
    widget = kind in WIDGET_TYPES or kind == DYNAMIC_COMBO or "widgetType" in options or bool(options.get("socketless"))
    entry = NodeInput(name, kind, widget and not forced, options)
    yield entry
    if kind == DYNAMIC_COMBO:
        chosen = values.get(name, entry.default)
        for option in options["options"]:
            if option["key"] == chosen:
                yield from section_inputs(option["inputs"], values, prefix=name + ".")
