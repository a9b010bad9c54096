from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetl import _onnx_bytes, _peak
from edgetl.targets.onnx import Onnx


@pytest.mark.parametrize(
    "graph", [_peak._floats(16), _peak._integers(16), _peak._stream(8), _peak._chain(5, 16)], ids=lambda g: len(g[0])
)
def test_the_official_checker_accepts_the_file_and_both_runtimes_agree(graph: _peak.Graph) -> None:
    file, feed = graph
    model = onnx.load_from_string(file)
    onnx.checker.check_model(model, full_check=True)
    session = Onnx.open(file, {}, 1)
    ours = session.run(feed)
    session.close()
    theirs = ReferenceEvaluator(model).run(None, dict(feed))
    for a, b in zip(ours.values(), theirs, strict=True):
        assert a.dtype == b.dtype
        # The runtimes may round a half to different neighbours.
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=1e-4, atol=1 if a.dtype == np.uint8 else 1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=3), st.sampled_from(["float32", "uint8", "int8"]))
def test_weights_and_shapes_come_back(shape: list[int], dtype: str) -> None:
    shape = [*shape[:-1], min(shape[-1], 9)] if np.prod(shape) > 10**5 else shape
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    tensor = onnx.TensorProto.FromString(_onnx_bytes.weight("w", array))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)
    value = onnx.ValueInfoProto.FromString(_onnx_bytes.value("x", shape, dtype))
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    assert value.type.tensor_type.elem_type == tensor.data_type


def test_large_sizes_take_several_digits() -> None:
    value = onnx.ValueInfoProto.FromString(_onnx_bytes.value("x", [1, 127, 128, 2**31, 2**40]))
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [1, 127, 128, 2**31, 2**40]
