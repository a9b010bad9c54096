from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.device import probe
from edgetl.stages.profile import profile

Maker = Callable[..., Path]


@pytest.mark.usefixtures("brief")
def test_memory_of_the_process_is_told(make: Maker) -> None:
    one = profile([make("memory")], probe(), out=None)[0].memory
    assert one.pss_bytes is not None
    assert one.pss_bytes > one.base_rss_bytes / 4
    assert one.private_dirty_bytes is not None
    assert (one.gpu_peak_bytes, one.gpu_method) == (None, None)


BALLAST = """
from dataclasses import dataclass
import numpy as np
@dataclass(frozen=True)
class Target:
    use = "ballast"
    precision = "fp32"
    @staticmethod
    def runtime(): return "json 1.0"
    @staticmethod
    def open(file, options, threads):
        return Session()
class Session:
    provider = "CPU"
    def __init__(self): self.held = np.ones({bytes}, np.uint8)
    def run(self, feed): return {{"logits": np.zeros((len(feed["pixel_values"]), 10), np.float32)}}
    def close(self): pass
PLUGIN = Target
"""


@pytest.fixture
def ballast(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """`ballast(size)`: a bundle whose target holds that many bytes."""

    def made(size: int) -> Path:
        (tmp_path / "targets").mkdir(exist_ok=True)
        (tmp_path / "targets" / "ballast.py").write_text(BALLAST.format(bytes=size))
        monkeypatch.setenv("EDGETL_PLUGINS", str(tmp_path))
        return make("ballast", target="ballast", needs=("json", ">=0.1"))

    return made


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("size", [64_000_000, pytest.param(256_000_000, marks=pytest.mark.slow)])
def test_a_ballast_is_found_and_that_of_the_parent_is_not(ballast: Callable[[int], Path], size: int) -> None:
    parents = bytearray(b"x") * 300_000_000
    one = profile([ballast(size)], probe(), out=None)[0].memory
    assert len(parents) == 300_000_000
    for found in (one.load_peak_delta_bytes, one.peak_delta_bytes, one.peak_delta_max_bytes, one.steady_delta_bytes):
        assert found == pytest.approx(size, rel=0.01, abs=1_000_000 + 0.01 * size)
