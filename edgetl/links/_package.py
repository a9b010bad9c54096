"""The device half of this package as one zip file, with equal bytes for equal sources. [no torch]"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

HOST = ("network", "quantize", "train", "methods", "losses", "families", "data", "shipped_data")
"""Folders that no device needs."""

CORE = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "PIL": "pillow",
    "tokenizers": "tokenizers",
    "typer": "typer",
    "rich": "rich",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "psutil": "psutil",
}
"""The modules that a device has to have, and the packages that bring them."""


def package() -> bytes:
    """Return the zip file."""
    root = Path(__file__).parent.parent
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.py")):
            place = path.relative_to(root)
            if place.parts[0] not in HOST:
                entry = zipfile.ZipInfo(f"{root.name}/{place.as_posix()}")
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return out.getvalue()
