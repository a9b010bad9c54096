"""What a report says of a file of lower precision beside the same network's fp32 file."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.bundle import open_bundle
from edgetl.measure import measurement
from edgetl.measure.measurement import Comparison, Measurement
from edgetl.page.precisions import precisions
from edgetl.stages.report import report

Replay = Callable[..., Measurement]
INT8 = {"use": "onnx", "precision": "int8"}
FP32 = {"use": "onnx", "precision": "fp32"}


@pytest.fixture
def lowered(
    planned: Callable[..., Path], make: Callable[..., Path], replay: Replay, tmp_path: Path
) -> Callable[..., Path]:
    """`lowered(ratios)`: a run whose student has an int8 file too, with these times over the reference's fp32 file."""

    def folder(ratios: dict[str, float], flags: str = "noisy") -> Path:
        run = tmp_path / "demo"
        shutil.copytree(planned({}, {}), run, ignore=shutil.ignore_patterns("measurements", "report.*"))
        plan = json.loads((run / "plan.json").read_text())
        (run / "plan.json").write_text(json.dumps({**plan, "targets": [FP32, INT8]}))
        student = run / "bundles" / "optin-0.5"
        make("optin-0.5", 64, 3, student / "onnx-int8", precision="int8")
        shutil.copy(run / "students" / "optin-0.5" / "onnx-fp32.npy", run / "students" / "optin-0.5" / "onnx-int8.npy")
        dense = measurement.identity(open_bundle(run / "bundles" / "dense" / "onnx-fp32").sums)
        files = {"dense fp32": None, **{f"optin-0.5 {precision}": ratio for precision, ratio in ratios.items()}}
        for title, ratio in files.items():
            name, precision = title.split()
            one = replay([[1_000_000 + i for i in range(100)]] * 3)
            sums = open_bundle(run / "bundles" / name / f"onnx-{precision}").sums
            changes = {"sha256": measurement.identity(sums), "name": name, "precision": precision}
            comparison = None if ratio is None else Comparison(
                baseline="dense", baseline_sha256=dense, quantity="cpu_time_p50", ratio=ratio, low=ratio * 0.99,
                high=ratio * 1.01, rounds=5, word="faster", more_rounds=0, candidates=2, holm_low=ratio,
                holm_high=ratio,
            )  # fmt: skip
            one = one.model_copy(
                update={"bundle": one.bundle.model_copy(update=changes), "comparison": comparison, "verdict": flags}
            )
            measurement.write(
                one, run / "measurements" / "local" / f"{measurement.stem(name, 'onnx', precision)}-0.json"
            )
        return run

    return folder


@pytest.mark.parametrize(
    ("int8", "says", "warned"),
    [
        (0.4, "faster than its fp32 file on local", False),
        (0.505, "not proven to be faster than its fp32 file on local", True),
        (0.7, "slower than its fp32 file on local", True),
    ],
)
def test_a_quantized_file_is_compared_with_its_own_fp32_file(
    lowered: Callable[..., Path], int8: float, says: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Faster than the reference, all of them: that is what was cut, and no merit of the precision."""
    run = lowered({"fp32": 0.5, "int8": int8})
    with caplog.at_level(logging.WARNING, "edgetl"):
        sheet = precisions(report(run).rows)
    assert sheet is not None
    ((*_, outcome, _, _, _, ratio, _, reason),) = sheet.lines
    assert (outcome, reason) == ("asked", says)
    assert ratio.startswith(f"{int8 / 0.5:.3g} (")
    assert (f"optin-0.5 onnx int8 is {says}" in caplog.messages) is warned
    assert says in (run / "report.md").read_text()


@pytest.mark.parametrize(("ratios", "verdict"), [({"int8": 0.4}, "noisy"), ({"fp32": 0.5, "int8": 0.7}, "invalid")])
def test_without_a_valid_time_of_both_it_says_so(
    lowered: Callable[..., Path], ratios: dict[str, float], verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    sheet = precisions(report(lowered(ratios, verdict)).rows)
    assert sheet is not None
    assert sheet.lines[0][-1] == "not measured beside an fp32 file of the same network"
    assert not [message for message in caplog.messages if "int8" in message]
