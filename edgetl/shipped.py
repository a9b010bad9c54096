"""Where the recipes and devices that ship with edgetl lie. [no torch]"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal


def folder(kind: Literal["recipes", "devices"]) -> Path:
    """Return the folder of shipped YAML files: inside an installed wheel, or the checkout's own."""
    packaged = Path(str(resources.files("edgetl"))) / "shipped_data" / kind
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / kind
