"""Files are tried at the ends of their dynamic axes: what fails at a size is named with that size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgetl import plugins, shape_audit
from edgetl.errors import GateMissed
from edgetl.network.network import Network, create
from edgetl.network.to_onnx import to_onnx
from edgetl.types import Feed, Json

BERT: Mapping[str, Json] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
LONGEST = 12


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    net, file = create("hf_bert", dict(BERT), ("a", "b"), 0), tmp_path_factory.mktemp("text") / "base.onnx"
    to_onnx(net, file)
    return net, file


def audited(net: Network, file: Path, tolerance: float | None = 1e-4) -> list[Json]:
    session = plugins.find("targets", "onnx").open(file, {}, 1)
    heads: Feed = {name: np.ones((3, LONGEST), np.int64) for name in ("input_ids", "attention_mask")}
    try:
        return shape_audit.audit(net, session, heads, LONGEST, tolerance)
    finally:
        session.close()


def changed(file: Path, to: Path, change: str) -> Path:
    """Write the file with a node before its answers that only some sizes get through unharmed."""
    model = onnx.load(file)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    fixed = {"batch": [7, 2], "wrong": [2]}[change]
    values = np.array(fixed, np.int64) if change == "batch" else np.ones(fixed, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "fixed"))
    kind = "Reshape" if change == "batch" else "Add"
    model.graph.node.append(onnx.helper.make_node(kind, ["before", "fixed"], ["logits"]))
    onnx.save(model, to)
    return to


def test_a_text_file_takes_the_least_an_odd_and_the_largest_size_of_each_axis(text: tuple[Network, Path]) -> None:
    found = audited(*text)
    assert {one["batch"] for one in found} == {1, 7, 64}
    assert {one["tokens"] for one in found} == {1, 5, LONGEST}
    assert all(one["max_rel"] < 1e-5 for one in found)


def test_a_batch_that_the_file_does_not_take_is_named(text: tuple[Network, Path], tmp_path: Path) -> None:
    net, file = text
    with pytest.raises(GateMissed, match="fails at batch 1, tokens 12"):
        audited(net, changed(file, tmp_path / "batch.onnx", "batch"))


def test_other_answers_than_torchs_are_named_where_they_count(text: tuple[Network, Path], tmp_path: Path) -> None:
    net, file = text
    wrong = changed(file, tmp_path / "wrong.onnx", "wrong")
    with pytest.raises(GateMissed, match=r"off by .* limit 0\.0001"):
        audited(net, wrong)
    assert all(one["max_rel"] > 0.01 for one in audited(net, wrong, None))
