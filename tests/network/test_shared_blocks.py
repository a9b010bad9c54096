"""Blocks that are equal stand in an exported file once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learngene import expand
from edgetl.network.to_onnx import to_onnx
from tests.methods.tleg_networks import gene


def test_a_stage_wise_student_ships_its_stages(tmp_path):
    found = gene(sharing=Sharing("stagewise", 1), depth=2)
    net = expand(found, 3)
    to_onnx(net, tmp_path / "shared.onnx")
    model = onnx.load(tmp_path / "shared.onnx")
    kept = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert kept == pytest.approx(found.size, rel=0.02)
    inputs = net.family.example(net.config, 3)
    session = onnxruntime.InferenceSession(tmp_path / "shared.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
    with torch.no_grad():
        np.testing.assert_allclose(answer, net.logits(inputs).numpy(), rtol=1e-4, atol=1e-5)
