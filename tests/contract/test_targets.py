"""What every target must do, whichever file it is in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter, ValidationError

from edgetl import plugins
from edgetl.errors import EdgetlError, Refused

every = pytest.mark.parametrize("name", plugins.names("targets"))


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


@every
def test_defaults_lower_open_run_and_close(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    assert target.use == name
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / target.lower(base, folder)
    assert file.parent == folder
    assert file.is_file()
    for form in (file, file.read_bytes()):
        for threads in (1, 2, 0):
            session = type(target).open(form, target.session(), threads)
            assert session.provider
            for batch in (1, 3):
                found = session.run({"x": np.ones((batch, 2), np.float32)})
                np.testing.assert_allclose(found["logits"], [[4, 6]] * batch, rtol=1e-2)
            session.close()


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
    session = type(target).open(tmp_path / target.lower(base, tmp_path), {}, 1)
    for feed in ({"x": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 2), np.float32)}, {}):
        with pytest.raises(EdgetlError):
            session.run(feed)
    session.close()
    with pytest.raises(EdgetlError):
        session.run({"x": np.ones((1, 2), np.float32)})


@every
def test_options_that_nobody_knows_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    target = plugins.find("targets", name)()
    file = tmp_path / target.lower(base, tmp_path)
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
    file = tmp_path / target.lower(base, tmp_path)
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
