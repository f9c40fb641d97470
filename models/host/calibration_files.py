"""Where activation statistics are kept: the folder `activation_stats` of ComfyUI's models."""

from __future__ import annotations

from .named_files import NamedFiles

FILES = NamedFiles("activation_stats")
calibration_files, calibration_path, new_calibration_path = FILES.names, FILES.path, FILES.new_path
