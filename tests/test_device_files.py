from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl import shipped
from edgetl.cli import app
from edgetl.device import Device, Floor, Roofline, load_device, names, probe, read_device, usable_cpus
from edgetl.device_file import free_place, write_calibrated, write_probed
from edgetl.errors import BadHost, BadInput
from edgetl.machine import cache_bytes

SOURCES = ("datasheet", "measured", "from memory, unverified", "choice")
SHIPPED = (
    *("android", "cloud-2vcpu", "h200", "jetson-agx-orin-64g", "jetson-orin-nano-8g", "rpi4", "rpi5", "t4"),
    "x86-laptop",
)


def values(text: str) -> list[tuple[str, str]]:
    """Return every line with a number, and the comment behind it or on the line above."""
    found, above = [], ""
    for line in text.splitlines():
        body, _, comment = line.partition(" # ")
        if line.lstrip().startswith("#"):
            above = line
            continue
        key = body.strip().partition(":")[0]
        if re.search(r"\d", body.partition(":")[2]) and key not in ("schema", "name", "link", "notes"):
            found.append((body, comment or above))
        above = ""
    return found


def test_every_device_of_the_reference_ships_under_its_own_name() -> None:
    files = sorted(shipped.folder("devices").glob("*.yaml"))
    assert [path.stem for path in files] == list(SHIPPED)
    assert [read_device(path).name for path in files] == list(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_says_where_it_is_from(name: str) -> None:
    found = values((shipped.folder("devices") / f"{name}.yaml").read_text("utf-8"))
    assert len(found) > 3
    for line, comment in found:
        assert any(source in comment for source in SOURCES), line


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_device_can_be_measured_on(name: str) -> None:
    device = load_device(name)
    assert device.runtimes
    assert all(runtime.max_opset for runtime in device.runtimes)
    assert device.memory.budget_bytes is not None
    assert device.memory.budget_bytes <= device.memory.total_bytes
    assert device.threads <= len(device.cpus or range(device.threads))
    if device.roofline:
        assert device.roofline.bandwidth_gbs


def test_peaks_are_dense() -> None:
    orin, h200 = load_device("jetson-orin-nano-8g").roofline, load_device("h200").roofline
    assert orin is not None
    assert h200 is not None
    assert orin.peak["int8_gops"] == 67_000 / 2
    assert h200.peak["int8_gops"] == 1_979_000


def test_a_peak_has_a_known_name_and_a_number() -> None:
    for peak in ({"fp23_gflops": 1.0}, {"fp32_gflops": 0.0}, {"fp32_gflops": float("inf")}):
        with pytest.raises(ValueError, match="fp"):
            Roofline.model_validate({"peak": peak, "source": "measured"})


def test_a_probed_machine_is_read_back(tmp_path: Path) -> None:
    path = write_probed(tmp_path / "board.yaml", "board")
    assert path.read_text("utf-8").startswith("# This machine")
    device = read_device(path)
    assert device == probe().model_copy(update={"name": "board", "notes": ""})
    assert load_device(str(path)) == device


def test_a_calibrated_device_is_read_back(tmp_path: Path) -> None:
    roofline = Roofline(
        peak={"fp32_gflops": 96.5}, bandwidth_gbs=16.7, launch_us=0.2, threads=1, source="measured",
        ci95={"fp32_gflops": (95.0, 98.0)},
    )  # fmt: skip
    device = probe().model_copy(update={"roofline": roofline, "noise": Floor(aa_ratio_ci95=(0.98, 1.01), mde=0.017)})
    write_calibrated(device, tmp_path / "local.yaml")
    assert read_device(tmp_path / "local.yaml") == device.model_copy(update={"notes": ""})


@pytest.mark.parametrize(("out", "name"), [("there.yaml", "a"), ("new.txt", "a"), ("new.yaml", "A b"), ("x.yaml", "")])
def test_no_file_is_overwritten_and_no_name_leaves_the_folder(tmp_path: Path, out: str, name: str) -> None:
    (tmp_path / "there.yaml").write_text("mine")
    with pytest.raises(BadInput):
        free_place(tmp_path / out, name)
    assert (tmp_path / "there.yaml").read_text() == "mine"
    with pytest.raises(BadInput):
        free_place(None, "../x")


def test_probe_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["devices", "probe", "--name", "desk"])
    assert done.exit_code == 0
    assert done.stdout.strip() == "desk.yaml"
    assert isinstance(read_device(tmp_path / "desk.yaml"), Device)
    assert CliRunner().invoke(app, ["devices", "show", "./desk.yaml"]).exit_code == 0
    assert "desk" not in names()


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(BadHost, match="cannot write"):
        write_calibrated(probe(), Path("/proc/none.yaml"))


def test_the_last_cache_is_the_one_that_counts(tmp_path: Path) -> None:
    sizes = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")]
    for i, facts in enumerate(sizes):
        folder = tmp_path / f"cpu{usable_cpus()[0]}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in zip(("level", "type", "size"), facts, strict=True):
            (folder / name).write_text(text + "\n")
    assert cache_bytes(tmp_path) == 32 << 20
    assert cache_bytes(tmp_path / "none") is None
