"""Interspatial: measured speed, control over bodies and cameras, and editing for ComfyUI's video models.

Entry point only. ComfyUI reads the two names below; nodes, torch and the rest are imported when it asks for the nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """The extension object that ComfyUI asks for its nodes once per start."""
    from comfy_api.latest import ComfyExtension

    from .models.host import register_folders
    from .models.host.warm_up import remember_tiles
    from .nodes import node_classes

    class Interspatial(ComfyExtension):
        async def on_load(self) -> None:
            register_folders(Path(__file__).parent / "checkpoints")
            remember_tiles()

        async def get_node_list(self) -> list[type]:
            return node_classes()

    return Interspatial()
