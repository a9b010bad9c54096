"""OpenVINO's files: equal to the network, equal bytes, and nothing in them is trusted."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgetl
from edgetl import bundle, plugins
from edgetl.errors import BadHost, BadInput, Refused
from edgetl.explain.onnx_graph import read_graph
from edgetl.network import network as networks
from edgetl.recipe.schema import Material
from edgetl.session import Session
from edgetl.stages.export import export
from edgetl.targets import openvino
from edgetl.targets.openvino import Openvino
from tests.targets.conftest import EVERY, NETWORKS, calibration, feed

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec(name), reason=f'needs {name}: pip install "edgetl[openvino]"')
    for name in ("openvino", "nncf")
]
each = pytest.mark.parametrize("name", EVERY)

PROGRAM = """
import logging, sys
from pathlib import Path
from edgetl.recipe.schema import Material
from edgetl.targets.openvino import Openvino
from tests.targets.conftest import calibration
base, out = map(Path, sys.argv[1:])
Openvino(precision="int8").lower(base, out, Material(calibration(base.parent.name)))
assert logging.getLogger("nncf").level != logging.ERROR
assert "openvino_telemetry" not in sys.modules
"""


def lowered(base: Path, folder: Path, precision: str = "fp32", floats: frozenset[str] = frozenset()) -> Path:
    folder.mkdir(exist_ok=True)
    material = Material(calibration(base.parent.name), floats)
    return folder / Openvino(precision=precision).lower(base, folder, material)


def answers(session: Session, name: str, batch: int, tokens: int = 9) -> NDArray[np.float32]:
    return np.asarray(session.run(feed(name, batch, tokens))["logits"], np.float32)


def far(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@each
def test_fp32_is_the_network_at_every_batch_and_length(name: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    ours = Openvino.open(lowered(base(name), tmp_path), {}, 1)
    theirs = plugins.find("targets", "onnx").open(base(name), {}, 1)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 48))
    def equal(batch: int, tokens: int) -> None:
        assert far(answers(ours, name, batch, tokens), answers(theirs, name, batch, tokens)) < 1e-5

    equal()


@each
def test_int8_quantizes_all_that_works_but_depthwise(name: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    target = Openvino(precision="int8")
    file = lowered(base(name), tmp_path, "int8")
    nodes = [node.name for node in read_graph(base(name).read_bytes()).nodes if node.op in openvino.OPERATORS]
    dtypes = target.dtypes(file, nodes)
    assert {node for node in nodes if dtypes[node] == "int8"} == set(target.nodes(base(name)))
    kept = [node for node in nodes if dtypes[node] != "int8"]
    assert bool(kept) == (name in ("depthwise", "vit", "bert"))
    assert name == "depthwise" or all(node.endswith("attn/MatMul_1") for node in kept)  # attention's weights and values
    float_file = Openvino.open(lowered(base(name), tmp_path / "float"), {}, 1)
    assert 0 < far(answers(Openvino.open(file, target.session(), 1), name, 7), answers(float_file, name, 7)) < 0.15


def test_given_back_nodes_are_float_and_only_those(base: Callable[[str], Path], tmp_path: Path) -> None:
    target = Openvino(precision="int8")
    nodes = target.nodes(base("bert"))
    back = frozenset(nodes[::3])
    dtypes = target.dtypes(lowered(base("bert"), tmp_path, "int8", back), nodes)
    assert {name for name, dtype in dtypes.items() if dtype == "fp32"} == back
    with pytest.raises(BadInput, match="no operation"):
        lowered(base("bert"), tmp_path, "int8", frozenset(nodes))


def test_fp16_halves_the_weights(base: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "fp16", "bf16"):
        with zipfile.ZipFile(lowered(base("resnet_cifar"), tmp_path / precision, precision)) as archive:
            sizes[precision] = archive.getinfo("model.bin").file_size
    assert sizes["fp16"] < 0.52 * sizes["fp32"]
    assert sizes["bf16"] == sizes["fp32"]


def test_a_hint_is_a_hint(
    base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = Openvino(precision="bf16")
    file = lowered(base("resnet_cifar"), tmp_path, "bf16")
    assert target.session() == {"precision_hint": "bf16"}
    assert set(target.dtypes(file, Openvino(precision="int8").nodes(base("resnet_cifar"))).values()) == {"bf16 hint"}
    exact = answers(Openvino.open(file, {}, 1), "resnet_cifar", 7)
    monkeypatch.setitem(openvino.HINTS, "bf16", ("ABSENT", "bf16"))
    with caplog.at_level(logging.WARNING, "edgetl"):
        np.testing.assert_array_equal(answers(Openvino.open(file, target.session(), 1), "resnet_cifar", 7), exact)
    assert "does not compute in bf16" in caplog.text


def test_int8_has_equal_bytes_in_every_process_and_sends_nothing(base: Callable[[str], Path], tmp_path: Path) -> None:
    here = lowered(base("resnet_cifar"), tmp_path / "here", "int8").read_bytes()
    there = tmp_path / "there"
    there.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(base("resnet_cifar")), str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (there / openvino.FILE).read_bytes() == here
    with zipfile.ZipFile(io.BytesIO(here)) as archive:
        text = archive.read("model.xml").decode()
    assert str(base("resnet_cifar").parent) not in text
    assert "nncf" not in text.partition("</edges>")[2]


def zipped(graph: bytes, weights: bytes, **more: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in {"model.xml": graph, "model.bin": weights, **more}.items():
            archive.writestr(name, data)
    return written.getvalue()


def test_what_is_wrong_inside_a_file_is_refused(base: Callable[[str], Path], tmp_path: Path) -> None:
    good = lowered(base("vit"), tmp_path)
    with zipfile.ZipFile(good) as archive:
        graph, weights = archive.read("model.xml"), archive.read("model.bin")
    Openvino.open(zipped(graph, weights), {}, 1).close()
    outside = re.sub(rb'offset="\d+"', b'offset="999999999"', graph)
    foreign = graph.replace(b'type="MatMul"', b'type="Stranger"').replace(b'version="opset1"', b'version="extension"')
    liar = bytearray(zipped(graph, weights))
    entry = bytes(liar).rindex(b"PK\x01\x02")
    liar[entry + 20 : entry + 28] = b"\xf0\xff\xff\x7f" * 2  # model.bin claims 2 GB
    bad = {
        "weights outside": zipped(outside, weights),
        "foreign operators": zipped(foreign, weights),
        "no weights": zipped(graph, b""),
        "no graph": zipped(b"", weights),
        "another file": zipped(graph, weights, **{"../plugin.so": b"x"}),
        "a wrong size": bytes(liar),
        "a flipped bit": good.read_bytes()[:300] + bytes([good.read_bytes()[300] ^ 1]) + good.read_bytes()[301:],
        "cut off": good.read_bytes()[:-200],
    }
    for what, data in bad.items():
        with pytest.raises(Refused) as caught:
            Openvino.open(data, {}, 1)
        assert "\n" not in caught.value.problem, what


def test_wrong_inputs_are_named(base: Callable[[str], Path], tmp_path: Path) -> None:
    session = Openvino.open(lowered(base("bert"), tmp_path), {}, 1)
    good = dict(feed("bert", 2))
    ids = good["input_ids"]
    for wrong, said in (
        ({"input_ids": ids}, "it takes input_ids, attention_mask, not input_ids"),
        ({**good, "input_ids": ids.astype(np.int32)}, "input_ids is int64 [-1, -1], not int32 [2, 9]"),
        ({**good, "input_ids": ids[:1]}, "batches of different sizes"),
        ({**good, "input_ids": ids[0]}, "input_ids is int64 [-1, -1], not int64 [9]"),
    ):
        with pytest.raises(BadInput, match=re.escape(said)):
            session.run(wrong)
    assert session.run(good)["logits"].shape == (2, 3)


def test_threads_may_share_a_session_and_answers_stay(base: Callable[[str], Path], tmp_path: Path) -> None:
    session = Openvino.open(lowered(base("vit"), tmp_path), {}, 1)
    feeds = [feed("vit", 1 + i % 3, seed=i) for i in range(24)]
    alone = [session.run(one)["logits"] for one in feeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: session.run(one)["logits"], feeds))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_a_missing_extra_says_what_to_install(
    missing: str, base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BadHost) as caught:
        lowered(base("vit"), tmp_path, "int8")
    assert caught.value.fix == 'pip install "edgetl[openvino]"'
    if missing == "openvino":
        with pytest.raises(ImportError):  # what `doctor` asks
            Openvino.runtime()


def test_auto_tries_what_the_device_is_quick_in() -> None:
    found = [one.precision for one in Openvino(precision="auto").candidates(("fp32", "int8", "bf16"))]
    assert found == ["fp32", "bf16", "int8"]
    assert Openvino(precision="fp16").candidates(()) == (Openvino(precision="fp16"),)


def test_a_bundle_of_it_answers_as_its_network(tmp_path: Path) -> None:
    family, sizes = NETWORKS["vit"]
    networks.save(networks.create(family, sizes, ("a", "b", "c"), 0), tmp_path / "net")
    (folder,) = export(tmp_path / "net", ("openvino",))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["target"] == "openvino"
    assert manifest["dtypes"] == {"fp32": 1.0}
    assert manifest["session"] == {"precision_hint": "fp32"}
    opened = bundle.open_bundle(folder)
    golden = bundle.read_golden(opened)
    session = bundle.open_session(opened)
    assert far(np.asarray(session.run(golden.inputs)["logits"], np.float32), golden.logits) < 1e-4
    with edgetl.load(folder) as model:
        assert model.predict(np.zeros((8, 8), np.uint8)).label in ("a", "b", "c")
