"""The tiny task of the contract tests, here too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "contract" / "conftest.py"
_spec = importlib.util.spec_from_file_location("contract_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

_one_thread, killed, tiny = _module._one_thread, _module.killed, _module.tiny
network, context = _module.network, _module.context
