"""`bench` as a package whose import does no work: its own __init__ prepares ComfyUI, which the tests have done."""

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if "bench" not in sys.modules:
    package = types.ModuleType("bench")
    package.__path__ = [str(ROOT / "bench")]
    sys.modules["bench"] = package
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
