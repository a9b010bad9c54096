from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl import golden
from edgetl.errors import Refused


def test_a_small_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.write_npz(tmp_path / "bomb.npz", {"x": np.zeros(1_000_000, np.uint8)})
    data = (tmp_path / "bomb.npz").read_bytes()
    assert len(data) < 10_000
    assert golden.read_npz(data, "bomb.npz")["x"].sum() == 0
    monkeypatch.setattr(golden, "MOST_BYTES", 100_000)
    with pytest.raises(Refused, match="unpacks to"):
        golden.read_npz(data, "bomb.npz")
