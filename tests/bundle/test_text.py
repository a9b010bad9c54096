from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgetl.bundle import Golden, open_bundle, open_preprocess, write_bundle
from edgetl.errors import BadInput, Refused
from edgetl.runtime import load
from edgetl.stages.verify import verify

WORDS = ("[PAD]", "[UNK]", "good", "bad", "film")
TABLE = np.array([[9, 9], [0, 0], [0, 3], [3, 0], [1, 1]], np.float32)  # good -> positive, padding would be seen
TEXTS = ("good film", "bad", "bad bad good film film film")


def bag_of_words() -> bytes:
    """The sum of the words' rows where the mask is 1: (B, N) ids and mask -> (B, 2)."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    axes = [numpy_helper.from_array(np.array([i]), name) for i, name in ((2, "last"), (1, "middle"))]
    inputs = [value(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "bag", inputs, outputs, [numpy_helper.from_array(TABLE, "table"), *axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    (tmp_path / "bag.onnx").write_bytes(bag_of_words())
    half = {"value": 0.5, "low": 0.2, "high": 0.8}
    inputs = [
        {"name": name, "dtype": "int64", "shape": ["batch", "tokens"], "range": [0, high]}
        for name, high in (("input_ids", 4), ("attention_mask", 1))
    ]
    manifest = {
        "schema_version": 1,
        "task": "classification",
        "name": "bag",
        "labels": ["negative", "positive"],
        "raw": {"kind": "text", "dtype": "", "shape": []},
        "inputs": inputs,
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        "axes": {"batch": [1, None], "tokens": [1, 8]},
        "preprocessing": [{"op": "tokenize", "file": "tokenizer.json", "length": 8}],
        "postprocessing": [{"op": "softmax"}],
        "target": "onnx",
        "precision": "fp32",
        "session": {},
        "runtime": {"name": "onnxruntime", "needs": ">=1.20", "made_with": "1.31.1"},
        "opset": 20,
        "file": "model.onnx",
        "cost": {"macs": 0, "parameters": 10, "nodes": []},
        "parity": {"max_abs": 0, "max_rel": 0, "agreement": half, "n": 3},
        "accuracy": None,
        "provenance": {"edgetl": "0.1.0", "recipe_sha256": "", "backbone": {}, "data_sha256": ""},
    }
    ids = np.array([[2, 4, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [3, 3, 2, 4, 4, 4]])
    feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    logits = np.array([[1, 4], [3, 0], [9, 6]], np.float32)
    golden = Golden(tuple(text.encode() for text in TEXTS), feed, logits, np.array([1, 0, 0]))
    files = {"model.onnx": tmp_path / "bag.onnx", "tokenizer.json": tmp_path / "words.json"}
    write_bundle(tmp_path / "bag", manifest, files, golden)
    return tmp_path / "bag"


def test_texts_are_answered_alone_and_together(bundle: Path) -> None:
    with load(bundle) as model:
        together = model.predict(list(TEXTS))
        assert [p.label for p in together] == ["positive", "negative", "negative"]
        assert [model.predict(text) for text in TEXTS] == together
        assert model.predict(b"good film") == together[0]


@pytest.mark.parametrize("bad", ["", "  \n", b"\xff", Path("x.txt"), np.zeros(3), None])
def test_what_is_no_text_is_named(bundle: Path, bad: object) -> None:
    with load(bundle) as model, pytest.raises(BadInput):
        model.predict(bad)


def test_verify_repeats_the_tokenizer_too(bundle: Path, tmp_path: Path) -> None:
    check = verify(bundle)
    assert check.preprocessing_max_abs == 0
    assert check.stated is None
    ids = np.array([[2, 4, 0, 0, 0, 0, 0, 0]] * 5, np.int32)
    np.savez(tmp_path / "test.npz", input_ids=ids, attention_mask=(ids > 0).astype(np.uint8), y=np.ones(5, int))
    found = verify(bundle, tmp_path / "test.npz").score
    assert found is not None
    assert found.accuracy.value == 1


def test_the_tokenizer_that_was_checked_is_the_one_used(bundle: Path) -> None:
    model = load(bundle)
    (bundle / "tokenizer.json").write_text("{}")
    assert model.predict("good film").label == "positive"


def test_a_tokenizer_that_does_not_fit_is_refused(bundle: Path, reseal) -> None:
    facts = json.loads((bundle / "manifest.json").read_text())
    facts["inputs"][0]["range"] = [0, 3]
    (bundle / "manifest.json").write_text(json.dumps(facts))
    reseal(bundle)
    with pytest.raises(Refused, match=r"0\.\.3.*tokenizer"):
        load(bundle).predict("good film")
    facts["preprocessing"][0]["file"] = "../words.json"
    (bundle / "manifest.json").write_text(json.dumps(facts))
    reseal(bundle)
    with pytest.raises(Refused, match="words"):
        open_preprocess(open_bundle(bundle))
