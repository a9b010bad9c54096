from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgetl.device import Device, fingerprint, load_device, names, probe, read_device, require_here, usable_cpus
from edgetl.errors import BadHost, BadInput

TINY = """\
schema: edgetl/device/1
name: board
arch: {isa: ISA}
memory: {total_bytes: 1000000000}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "board.yaml"
    path.write_text(text.replace("ISA", platform.machine()))
    return path


@pytest.mark.parametrize("name", [n for n in names() if n != "local"])
def test_shipped_files_are_valid_and_named_after_themselves(name: str) -> None:
    assert load_device(name).name == name


def test_the_shipped_set() -> None:
    assert {"local", "rpi4", "rpi5", "x86-laptop", "cloud-2vcpu"} <= set(names())


def test_this_machine_is_probed() -> None:
    device = load_device("local")
    assert device == probe()
    assert device.threads == 1
    assert device.cpus == usable_cpus()
    assert device.arch.isa == platform.machine()
    assert device.memory.total_bytes > 10**8
    require_here(device)


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(BadInput, match="rpi6") as error:
        load_device("rpi6")
    assert "rpi" in error.value.fix


@pytest.mark.parametrize(
    ("line", "problem", "fix"),
    [
        ("thread: 2", "unknown key 'thread'", "threads"),
        ("power: {enery: none}", "unknown key 'power.enery'", "energy"),
        ("threads: 0", "threads: ", "threads"),
        ("cpus: [0, 0]", "cpus: ", "cpus"),
        ("link: ftp://somewhere", "link: ", "link"),
        ("link: 'ssh://host; rm -rf x'", "link: ", "link"),
        ("kind: mcu", "kind: ", "kind"),
        ("notes: &a x", "anchors", "YAML"),
    ],
)
def test_a_wrong_file_names_file_and_key(tmp_path: Path, line: str, problem: str, fix: str) -> None:
    with pytest.raises(BadInput) as error:
        read_device(written(tmp_path, TINY + line + "\n"))
    assert "board.yaml" in error.value.problem
    assert problem in error.value.problem
    assert fix in error.value.fix


def test_all_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        read_device(written(tmp_path, "name: board\nthread: 2\n"))
    assert "'arch' is missing" in error.value.problem
    assert "'memory' is missing" in error.value.problem
    assert "unknown key 'thread'" in error.value.problem


@pytest.mark.parametrize(
    "text", ["", "- a", "a: " + "x" * 70_000, "name: [", "memory: {total_bytes: 1, budget_bytes: 1}"]
)
def test_nonsense_is_an_error_with_a_fix(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput) as error:
        read_device(written(tmp_path, text))
    assert error.value.fix


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml"):
        load_device(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arch": {"isa": "mips"}}, "mips"),
        ({"cpus": (4095,)}, "cpu 4095"),
        ({"threads": 4096}, "4096 threads"),
    ],
)
def test_a_machine_that_cannot_stand_for_the_device(change: dict[str, object], problem: str) -> None:
    here = probe().model_dump(by_alias=True)
    with pytest.raises(BadHost, match=problem):
        require_here(Device.model_validate(here | change))


def test_fingerprint_knows_threads_and_runtime() -> None:
    one = probe()
    two = one.model_copy(update={"threads": 2})
    prints = {fingerprint(one, "onnxruntime 1"), fingerprint(one, "onnxruntime 2"), fingerprint(two, "onnxruntime 1")}
    assert len(prints) == 3
    assert fingerprint(one, "onnxruntime 1") == fingerprint(probe(), "onnxruntime 1")
