"""Networks in the middle of a run are timed on a device behind a link as bundles are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl.device import probe
from edgetl.network.network import create
from edgetl.stages.latency import Bench, latencies, trial
from edgetl.targets.onnx import Onnx
from edgetl.train.batches import Data
from tests.contract.conftest import LABELS, SIZES, tiny_prepared


@pytest.mark.slow
def test_networks_are_timed_on_the_device_and_not_asked_for_twice(board: Any, tmp_path: Path) -> None:
    device = probe().model_copy(update={"name": "board", "link": board.address})
    net = create("hf_vit", SIZES, LABELS, 0)
    # three: of two, a busy machine may say that their ratio is no claim
    cuts = [net.edit([g.keep(range(n)) for g in net.family.units(net.module)]) for n in (1, 2)]
    inputs = trial(Data(tiny_prepared(tmp_path)), 4)
    bench = Bench(Onnx(), inputs, tmp_path / "scratch", tmp_path / "shared", tmp_path / "old")
    found = latencies([net, *cuts, net.edit([])], device, bench)
    assert {m.device.link for m in found} == {board.address}
    assert [m.comparison is None for m in found] == [True, False, False, True]  # the last is the first again
    board.mend()
    board.program("python3", "exit 1")
    assert latencies([net, *cuts, net.edit([])], device, bench) == found
