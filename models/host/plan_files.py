"""Where plans of mixed precision are kept: the folder `quant_plans` of ComfyUI's models."""

from __future__ import annotations

from .named_files import NamedFiles

FILES = NamedFiles("quant_plans", ".json")
plan_files, plan_path, new_plan_path = FILES.names, FILES.path, FILES.new_path
