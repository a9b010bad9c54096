from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.bundle import Golden, open_bundle, open_session, read_golden, write_bundle
from edgetl.errors import BadHost, BadInput, OutOfResources, Refused

Make = Callable[..., Path]


def sealed_manifest(folder: Path, reseal: Callable[[Path], None], change: Callable[[dict], object]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)
    return folder


def test_what_is_written_is_read_back(make: Make, images: np.ndarray, truth: np.ndarray) -> None:
    bundle = open_bundle(make())
    assert sorted(p.name for p in bundle.folder.iterdir()) == [
        "SHA256SUMS",
        "golden.npz",
        "manifest.json",
        "model.onnx",
    ]
    golden = read_golden(bundle)
    assert golden.raw == tuple(i.tobytes() for i in images)
    np.testing.assert_array_equal(golden.logits, truth)
    np.testing.assert_array_equal(golden.y, truth.argmax(axis=1))
    session = open_session(bundle)
    assert session.provider == "CPUExecutionProvider"
    np.testing.assert_allclose(session.run(golden.inputs)["logits"], truth, rtol=1e-6)


def test_equal_content_gives_equal_bytes(make: Make) -> None:
    a, b = make("a"), make("b")
    assert all((b / p.name).read_bytes() == p.read_bytes() for p in a.iterdir())


def test_an_older_bundle_is_replaced_whole(make: Make, tmp_path: Path) -> None:
    (make() / "left-over.txt").write_text("x")
    bundle = open_bundle(make(name="tiny"))
    assert "left-over.txt" not in bundle.sums
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failed_write_keeps_the_older_bundle(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfResources, match="No space left"):
        make(session={"spinning": False})
    assert open_bundle(tmp_path / "tiny").manifest["session"] == {}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_place_that_cannot_be_written_is_named(make: Make) -> None:
    make("a")
    with pytest.raises(BadHost, match="cannot write"):
        make("a/model.onnx/b")


def test_goldens_without_raw_data(make: Make) -> None:
    bundle = open_bundle(make(raw=False))
    assert read_golden(bundle).raw is None
    assert bundle.manifest["golden"] == {"raw": False, "n": 6}


def test_a_bundle_that_could_not_be_opened_is_not_written(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="labels"):
        make(labels=["one"])
    with pytest.raises(BadInput, match="file"):
        make(file="other.onnx")
    golden = Golden(None, {}, np.zeros((1, 3), np.float32), np.zeros(1, np.int64))
    good = open_bundle(make()).manifest
    with pytest.raises(BadInput, match="plain file name"):
        write_bundle(tmp_path / "b", good, {"model.onnx": tmp_path / "tiny/model.onnx", "../x": tmp_path / "x"}, golden)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.npz"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_refused(make: Make, name: str, data: st.DataObject) -> None:
    folder = make()
    content = bytearray((folder / name).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(content)
    with pytest.raises(Refused, match=name):
        open_bundle(folder)


def test_a_truncated_file_is_refused(make: Make) -> None:
    folder = make()
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])
    with pytest.raises(Refused, match="damaged"):
        open_bundle(folder)


def test_missing_and_unlisted_files_are_refused(make: Make, tmp_path: Path) -> None:
    folder = make()
    (folder / "extra.so").write_bytes(b"")
    with pytest.raises(Refused, match=r"extra\.so is not listed"):
        open_bundle(folder)
    (folder / "extra.so").unlink()
    (folder / "golden.npz").unlink()
    with pytest.raises(Refused, match=r"golden\.npz is missing"):
        open_bundle(folder)
    with pytest.raises(BadInput, match="no bundle"):
        open_bundle(tmp_path / "none")
    with pytest.raises(BadInput, match="no bundle"):
        open_bundle(tmp_path / "model-source.onnx")
    with pytest.raises(Refused, match="not a bundle"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/b", "..", ".hidden", "C:\\x", "a b", "", "SHA256SUMS"]
)
def test_names_that_leave_the_folder_are_refused(make: Make, name: str) -> None:
    folder = make()
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(Refused, match="not allowed"):
        open_bundle(folder)


@pytest.mark.parametrize("text", ["", "x" * 70_000, "\x00\xff\n", "0123  model.onnx\n"])
def test_a_list_of_sums_that_is_none_is_refused(make: Make, text: str) -> None:
    folder = make()
    (folder / "SHA256SUMS").write_text(text, encoding="latin-1")
    with pytest.raises(Refused):
        open_bundle(folder)


def test_links_and_pipes_are_refused(make: Make, tmp_path: Path) -> None:
    folder = make()
    model = folder / "model.onnx"
    outside = tmp_path / "outside.onnx"
    shutil.copyfile(model, outside)
    for place in (
        lambda: model.symlink_to(outside),
        lambda: os.link(outside, model),
        lambda: os.mkfifo(model),
        model.mkdir,
    ):
        model.unlink()
        place()
        with pytest.raises(Refused, match=r"model\.onnx"):
            open_bundle(folder)
        if model.is_dir():
            model.rmdir()
            model.touch()


def test_a_swap_after_the_check_changes_nothing(make: Make, images: np.ndarray, truth: np.ndarray) -> None:
    bundle = open_bundle(make())
    (bundle.folder / "model.onnx").write_bytes(b"other")
    x = {"pixel_values": images[:, None].astype(np.float32) / 255}
    np.testing.assert_allclose(open_session(bundle).run(x)["logits"], truth, rtol=1e-5)
    (bundle.folder / "golden.npz").write_bytes(b"other")
    with pytest.raises(Refused, match="damaged"):
        read_golden(bundle)


RUNG = {
    "target": "onnx",
    "precision": "fp32",
    "outcome": "ships",
    "reason": "no other file keeps the gates",
    "size_bytes": 10,
    "given_back": ["layers.0/MatMul"],
    "time_ms": None,
    "ratio": {"value": 1, "low": 0.9, "high": 1.1},
}


def test_how_a_file_was_made_may_be_told(make: Make) -> None:
    told = {"given_back": ["a"], "calibration": None, "ladder": [RUNG, {**RUNG, "outcome": "rejected"}]}
    before = open_bundle(make()).manifest["provenance"]
    dtypes = {"int8": 0.9, "fp32": 0.1}
    assert open_bundle(make(provenance={**before, **told}, dtypes=dtypes)).manifest["dtypes"] == dtypes


def drop_key(*keys: str) -> Callable[[dict], object]:
    def change(manifest: dict) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop_key("labels"), "labels is missing"),
        (drop_key("runtime", "needs"), "runtime.needs is missing"),
        (lambda m: m.update(labels=["a", 1]), "labels.1 has the wrong type"),
        (lambda m: m.update(labels=["a", "a", "b"]), "all different"),
        (lambda m: m.update(task="detection"), "task"),
        (lambda m: m.update(file="../model.onnx"), "file"),
        (lambda m: m.update(file="golden.npz"), "file"),
        (lambda m: m.update(target="../../os"), "target"),
        (lambda m: m.update(schema_version=True), "schema_version"),
        (lambda m: m.update(axes={"batch": [2, 1]}), "axes.batch"),
        (lambda m: m.update(inputs=[]), "inputs"),
        (lambda m: m["inputs"][0].update(shape=["batch", "rows"]), "inputs.0.shape"),
        (lambda m: m["raw"].update(kind="pickle"), "raw.kind"),
        (lambda m: m["cost"].update(macs="many"), "cost.macs"),
        (lambda m: m["cost"].update(macs=float("nan")), "cost.macs"),
        (lambda m: m["cost"].update(macs=10**400), "cost.macs"),
        (lambda m: m["cost"].update(parameters=-1), "cost has a negative count"),
        (lambda m: m.update(opset="20"), "opset"),
        (lambda m: m["runtime"].update(needs=">=1; rm"), "runtime.needs"),
        (lambda m: m.update(dtypes={"int8": "most"}), "dtypes"),
        (lambda m: m.update(dtypes={"int8": 1.5}), "dtypes"),
        (lambda m: m.update(dtypes={"x" * 3000: 1}), "more than 2000 characters"),
        (lambda m: m["parity"].update(shapes=[{"batch": -1}]), "parity.shapes"),
        (lambda m: m["provenance"].update(given_back=[1]), "provenance.given_back.0"),
        (lambda m: m["provenance"].update(given_back=["n"] * 100_001), "more than 100000 entries"),
        (lambda m: m["provenance"].update(calibration={"part": "train"}), "calibration.samples is missing"),
        (lambda m: m["provenance"].update(ladder={}), "provenance.ladder must be a list"),
        (lambda m: m["provenance"].update(ladder=[RUNG | {"outcome": "sinks"}]), "ladder.0.outcome"),
        (lambda m: m["provenance"].update(ladder=[RUNG | {"outcome": "rejected"}]), "ships not one file"),
        (lambda m: m["provenance"].update(ladder=[RUNG, RUNG]), "ships not one file"),
        (lambda m: m["provenance"].update(ladder=[RUNG | {"size_bytes": -1}]), "ladder.0.size_bytes"),
        (lambda m: m["provenance"].update(ladder=[RUNG | {"time_ms": 3}]), "ladder.0.time_ms"),
        (lambda m: m["provenance"].update(ladder=[RUNG | {"target": 3}]), "ladder.0.target"),
        (lambda m: m["provenance"].update(ladder=[RUNG] * 101), "more than 100 entries"),
    ],
)
def test_a_malformed_manifest_is_refused_and_the_key_named(make: Make, reseal, change, named: str) -> None:
    folder = sealed_manifest(make(), reseal, change)
    with pytest.raises(Refused, match=named):
        open_bundle(folder)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_manifest_crashes_the_reader(make: Make, reseal, data: st.DataObject) -> None:
    folder = make()
    manifest = json.loads((folder / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(manifest)))
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "name", "kind"]), inner),
        max_leaves=5,
    )
    manifest[key] = data.draw(values)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)
    problem = ""
    try:
        open_bundle(folder)
    except Refused as error:
        problem = error.problem
    assert not problem or key in problem


@pytest.mark.parametrize("text", [b"", b"[]", b"[" * 100_000, b"\xff", b"null"])
def test_a_manifest_that_is_no_mapping_is_refused(make: Make, reseal, text: bytes) -> None:
    folder = make()
    (folder / "manifest.json").write_bytes(text)
    reseal(folder)
    with pytest.raises(Refused, match=r"manifest\.json"):
        open_bundle(folder)


def test_a_newer_schema_asks_for_an_upgrade(make: Make, reseal) -> None:
    folder = sealed_manifest(make(), reseal, lambda m: (m.clear(), m.update(schema_version=2)))
    with pytest.raises(Refused) as caught:
        open_bundle(folder)
    assert "upgrade" in caught.value.fix


def test_a_runtime_that_is_too_old_is_a_host_problem(make: Make) -> None:
    bundle = open_bundle(make(runtime={"name": "onnxruntime", "needs": ">=99.1", "made_with": "99.1"}))
    with pytest.raises(BadHost, match=r">=99\.1") as caught:
        open_session(bundle)
    assert "pip install" in caught.value.fix


def test_an_unknown_target_and_unknown_options_are_refused(make: Make) -> None:
    with pytest.raises(Refused, match="'npu'"):
        open_session(open_bundle(make(target="npu")))
    with pytest.raises(Refused, match="custom_ops"):
        open_session(open_bundle(make(session={"custom_ops": "/tmp/x.so"})))
    with pytest.raises(BadInput, match="threads"):
        open_session(open_bundle(make(target="onnx", session={})), threads=-1)


def test_a_model_that_is_none_is_refused_in_one_line(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    for data in (b"", b"not an onnx file"):
        with pytest.raises(Refused) as caught:
            open_session(open_bundle(make(model=data)))
        assert "\n" not in caught.value.problem
    assert capfd.readouterr() == ("", "")


def test_weights_outside_the_file_are_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the runtime looks for external data of a model in memory
    model = onnx.load_model_from_string(make().joinpath("model.onnx").read_bytes())
    onnx.save_model(model, tmp_path / "ext.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    folder = make(model=(tmp_path / "ext.onnx").read_bytes())
    with pytest.raises(Refused, match="outside itself"):
        open_session(open_bundle(folder))


@pytest.mark.parametrize("name", ["raw_offsets", "logits", "y", "input.pixel_values"])
def test_malformed_goldens_are_refused(make: Make, reseal, name: str) -> None:
    folder = make()
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    for broken in (arrays[name][:-1], np.array(["x"]), None):
        rest = {k: v for k, v in arrays.items() if k != name}
        np.savez(folder / "golden.npz", **rest, **({} if broken is None else {name: broken}))
        reseal(folder)
        with pytest.raises(Refused, match=r"golden\.npz"):
            read_golden(open_bundle(folder))


def test_goldens_with_objects_are_refused_and_not_run(make: Make, reseal) -> None:
    folder = make()
    np.savez(folder / "golden.npz", logits=np.array([{}], object))
    reseal(folder)
    with pytest.raises(Refused, match="plain arrays"):
        read_golden(open_bundle(folder))
