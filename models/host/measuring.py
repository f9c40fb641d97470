"""What the stopwatch needs of ComfyUI: the outermost place in a run, and which node is running."""

from __future__ import annotations

from collections.abc import Callable

from comfy import patcher_extension
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context


def wrap_outermost(model, kind: str, key: str, wrapper: Callable) -> None:
    """Put a wrapper on a MODEL. Wrappers in model_options run outside the ones that the patcher itself carries."""
    kind = getattr(patcher_extension.WrappersMP, kind)
    patcher_extension.add_wrapper_with_key(kind, key, wrapper, model.model_options, is_model_options=True)


def executing_node() -> tuple[Callable[[str], dict | None], str] | None:
    """(get_node of the running graph, id of the node that is running), None outside a graph."""
    context, graph = get_executing_context(), get_progress_state().dynprompt
    if context is None or not graph.has_node(context.node_id):
        return None
    return (lambda node_id: graph.get_node(node_id) if graph.has_node(node_id) else None), context.node_id
