"""Ranges of activations: what the network computes is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import BadInput
from edgetl.quantize import ranges


def product(folder: Path, opset: int = 20) -> Path:
    weight = numpy_helper.from_array(np.array([[1, 0], [0, -2]], np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["logits"], name="only/MatMul")
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "logits")]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = 10
    onnx.save(model, folder / "base.onnx")
    return folder / "base.onnx"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return product(tmp_path)


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=1, max_size=9), batch=st.integers(1, 4)
)
def test_extremes_are_those_of_all_batches(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, float]], batch: int
) -> None:
    path = product(tmp_path_factory.mktemp("ranges"))
    x = np.array(values, np.float32)
    found = ranges.observe(path, [{"x": x[i : i + batch]} for i in range(0, len(x), batch)], ranges.OPERATORS)
    y = x @ np.array([[1, 0], [0, -2]], np.float32)
    assert found == {"x": (x.min(), x.max()), "logits": (y.min(), y.max())}


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_clipping_methods_leave_a_lone_outlier_out(base: Path, method: ranges.Method) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200_000, 2)).astype(np.float32)
    x[7, 0] = 25
    low, high = ranges.observe(base, [{"x": x}], ranges.OPERATORS, method)["x"]
    assert -25 < low < -1
    assert 1 < high < 20


def test_kept_ranges_are_read_back_for_the_same_base_and_ways_only(base: Path, tmp_path: Path) -> None:
    feeds = [{"x": np.array([[1, 2]], np.float32)}]
    first = ranges.kept(tmp_path, base, feeds, (ranges.OPERATORS, "minmax"))
    other = [{"x": np.array([[5, 9]], np.float32)}]
    assert ranges.kept(tmp_path, base, other, (ranges.OPERATORS, "minmax")) == first
    assert ranges.kept(tmp_path, base, other, (("MatMul",), "minmax")) != first
    assert ranges.kept(None, base, other, (ranges.OPERATORS, "minmax")) != first


def test_outside_is_the_furthest_beyond_in_widths() -> None:
    calibrated = {"a": (0.0, 2.0), "b": (-1.0, 1.0), "flat": (3.0, 3.0)}
    assert ranges.outside(calibrated, {"a": (0.5, 1.0), "b": (-1.0, 1.0)})[1] == 0
    assert ranges.outside(calibrated, {"a": (-1.0, 2.0), "b": (-1.0, 1.5)}) == ("a", 0.5)
    assert ranges.outside(calibrated, {"flat": (3.0, 3.1), "unknown": (0.0, 9.0)}) == ("flat", 1.0)
    assert ranges.outside({}, {}) == ("", 0.0)


def test_an_opset_that_the_runtime_does_not_know_is_an_error_of_ours(tmp_path: Path) -> None:
    newer = product(tmp_path, 99)
    with pytest.raises(BadInput, match=r"(?i)opset") as caught:
        ranges.observe(newer, [{"x": np.ones((1, 2), np.float32)}], ranges.OPERATORS)
    assert "\n" not in caught.value.problem
