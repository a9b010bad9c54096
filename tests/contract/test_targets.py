"""What every target must do, whichever file it is in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter, ValidationError

from edgetl import plugins
from edgetl.errors import BadHost, BadInput, EdgetlError, Refused
from edgetl.recipe.schema import Material, Target
from edgetl.session import Session
from edgetl.types import Json

every = pytest.mark.parametrize("name", plugins.names("targets"))


@pytest.fixture(autouse=True)
def _installed(name: str) -> None:
    """Skip a target whose runtime an extra brings that is not there."""
    try:
        plugins.find("targets", name).runtime()
    except ImportError as error:
        pytest.skip(f"the runtime of {name} is not installed: {error}")


def _opened(target: Target, file: bytes | Path, options: Mapping[str, Json], threads: int) -> Session:
    """Open an artifact, or skip where this machine lacks the hardware that it is for."""
    try:
        return type(target).open(file, options, threads)
    except BadHost as error:
        pytest.skip(error.problem)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    w = numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    value = helper.make_tensor_value_info
    x, logits = value("x", TensorProto.FLOAT, ["batch", 2]), value("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([node], "g", [x], [logits], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    (tmp_path / "base.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "base.onnx"


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    """Two matrices with a ReLU between them, named as exported networks name their nodes."""
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32) / 8, name)
        for name, shape in (("w1", (64, 64)), ("w2", (64, 32)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first/MatMul"),
        helper.make_node("Relu", ["a"], ["b"], name="first/Relu"),
        helper.make_node("MatMul", ["b", "w2"], ["logits"], name="second/MatMul"),
    ]
    value = helper.make_tensor_value_info
    x, logits = value("x", TensorProto.FLOAT, ["batch", 64]), value("logits", TensorProto.FLOAT, ["batch", 32])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [logits], weights))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 20))
    model.ir_version = 10
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _answers(file: Path, feed: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    session = plugins.find("targets", "onnx").open(file, {}, 1)
    try:
        return np.asarray(session.run(feed)["logits"])
    finally:
        session.close()


@every
def test_defaults_lower_open_run_and_close(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    assert target.use == name
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / target.lower(base, folder, Material())
    assert file.parent == folder
    assert file.is_file()
    for form in (file, file.read_bytes()):
        for threads in (1, 2, 0):
            session = _opened(target, form, target.session(), threads)
            assert session.provider
            for batch in (1, 3):
                found = session.run({"x": np.ones((batch, 2), np.float32)})
                np.testing.assert_allclose(found["logits"], [[4, 6]] * batch, rtol=1e-2)
            session.close()


each = pytest.mark.parametrize(
    ("name", "precision"),
    [(name, p) for name in plugins.names("targets") for p in plugins.find("targets", name).precisions if p != "auto"],
)


@each
def test_every_precision_answers_as_the_float_file_and_says_what_it_computes_in(
    name: str, precision: str, network_file: Path, tmp_path: Path
) -> None:
    target = plugins.find("targets", name)(precision=precision)
    random = np.random.default_rng(0)
    feeds = tuple({"x": random.normal(size=(8, 64)).astype(np.float32)} for _ in range(4))
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / target.lower(network_file, folder, Material(feeds))
    assert [path for path in folder.iterdir() if path.is_file()] == [file]
    session = _opened(target, file, target.session(), 1)
    wanted = _answers(network_file, feeds[0])
    got = session.run(feeds[0])["logits"]
    session.close()
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 0.15 * np.abs(wanted).max()
    found = target.dtypes(file, ["first/MatMul", "second/MatMul", "nowhere"])
    assert set(found) <= {"first/MatMul", "second/MatMul"}
    if precision == "fp32" or target.nodes(network_file):  # what changes no node is a hint, which a CPU may not take
        assert found == dict.fromkeys(("first/MatMul", "second/MatMul"), precision.partition("_")[0])


@each
def test_a_node_that_is_given_back_is_float_again(
    name: str, precision: str, network_file: Path, tmp_path: Path
) -> None:
    target = plugins.find("targets", name)(precision=precision)
    nodes = target.nodes(network_file)
    if not nodes:
        assert precision == "fp32" or not target.calibrates
        return
    assert set(nodes) == {"first/MatMul", "second/MatMul"}
    feeds = tuple({"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(4))
    file = tmp_path / target.lower(network_file, tmp_path, Material(feeds, frozenset({"first/MatMul"})))
    found = target.dtypes(file, nodes)
    assert found["first/MatMul"] == "fp32"
    assert found["second/MatMul"] == precision.partition("_")[0]


@each
def test_equal_inputs_give_equal_bytes(name: str, precision: str, network_file: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)(precision=precision)
    feeds = tuple({"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(4))
    made = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        made.append((folder / target.lower(network_file, folder, Material(feeds))).read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]


@every
def test_too_few_samples_do_not_calibrate(name: str, network_file: Path, tmp_path: Path) -> None:
    for precision in plugins.find("targets", name).precisions:
        target = plugins.find("targets", name)(precision=precision)
        if not target.calibrates:
            continue
        for feeds in ((), ({"x": np.ones((3, 64), np.float32)},)):
            with pytest.raises(BadInput, match="training samples"):
                target.lower(network_file, tmp_path, Material(feeds))


@every
def test_auto_tries_fp32_first_and_only_what_the_device_is_quick_in(name: str) -> None:
    cls = plugins.find("targets", name)
    for precision in cls.precisions:
        if precision != "auto":
            assert cls(precision=precision).candidates(("fp32", "int8")) == (cls(precision=precision),)
            continue
        plain = cls(precision="auto").candidates(("fp32",))
        more = cls(precision="auto").candidates(("fp32", "fp16", "bf16", "int8"))
        assert plain[0].precision == more[0].precision == "fp32"
        assert set(plain) < set(more)
        assert all(one.precision in set(type(one).precisions) - {"auto"} for one in more)


@every
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target = plugins.find("targets", name)
    (tmp_path / "bad").write_bytes(b"\x00" * 100)
    with pytest.raises(Refused) as caught:
        target.open(tmp_path / "bad", {}, 1)
    assert "\n" not in caught.value.problem
    with pytest.raises(EdgetlError):
        target.open(tmp_path / "missing", {}, 1)


@every
def test_a_wrong_input_is_an_error_of_ours(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    session = _opened(target, tmp_path / target.lower(base, tmp_path, Material()), {}, 1)
    for feed in ({"x": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 2), np.float32)}, {}):
        with pytest.raises(EdgetlError):
            session.run(feed)
    session.close()
    with pytest.raises(EdgetlError):
        session.run({"x": np.ones((1, 2), np.float32)})


@every
def test_options_that_nobody_knows_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    file = tmp_path / target.lower(base, tmp_path, Material())
    with pytest.raises(Refused):
        type(target).open(file, {"nobody_knows": 1}, 1)


@every
def test_a_recipe_line_is_validated(name: str) -> None:
    adapter = TypeAdapter(plugins.find("targets", name))
    assert adapter.validate_python({"use": name}) == plugins.find("targets", name)()
    for bad in ({"use": name, "precison": "fp32"}, {"use": "other"}, {"use": name, "precision": "fp1"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


@every
def test_it_names_its_runtime_and_version(name: str) -> None:
    runtime, version = plugins.find("targets", name).runtime().split()
    assert runtime.isidentifier()
    assert version[0].isdigit()


@every
def test_opening_imports_neither_torch_nor_onnx(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    file = tmp_path / target.lower(base, tmp_path, Material())
    _opened(target, file, {}, 1).close()
    program = f"""
import sys
from pathlib import Path
from edgetl import plugins
target = plugins.find("targets", {name!r})
target.open(Path({str(file)!r}), {{}}, 1).close()
print({{"torch", "transformers", "onnx", "pydantic"}} & set(sys.modules) or "none")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "none"
