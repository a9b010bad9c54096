"""Turn a large pretrained backbone into a compact student that keeps a budget in milliseconds and megabytes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.recipe.read import read as read
    from edgetl.runtime import load as load
    from edgetl.stages.compress import compress as compress
    from edgetl.stages.export import export as export
    from edgetl.stages.merge import merge as merge
    from edgetl.stages.profile import profile as profile
    from edgetl.stages.report import report as report
    from edgetl.stages.verify import verify as verify

__version__ = "0.1.0"

_STAGES = ("compress", "merge", "export", "verify", "profile", "report")
_WHERE = {"load": "edgetl.runtime", "read": "edgetl.recipe.read", **{name: f"edgetl.stages.{name}" for name in _STAGES}}
"""The module of each public name; imported when first asked for, so that an app pays for nothing it does not use."""


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgetl' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
