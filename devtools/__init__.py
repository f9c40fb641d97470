"""Tools for people who work on the pack: a ComfyUI server on demand, workflow conversion, the demo. Not published."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
API_WORKFLOWS = WORKFLOWS / "api"
