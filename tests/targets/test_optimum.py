"""Optimum's exporter as a second way to a base ONNX file, and its models as a second way to open ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgetl.bundle import open_bundle
from edgetl.errors import BadInput
from edgetl.network import by_optimum
from edgetl.network.network import Network, create, save
from edgetl.network.to_onnx import WORKING, to_onnx
from edgetl.stages.export import export

REASON = 'needs optimum-onnx: pip install "edgetl[optimum]" in an environment of its own, with transformers 4.57'
exporter = pytest.importorskip("optimum.exporters.onnx", reason=REASON)
runtime = pytest.importorskip("optimum.onnxruntime", reason=REASON)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
LABELS = ("a", "b", "c")
TASKS = {"hf_vit": "image-classification", "hf_bert": "text-classification"}
Made = Callable[[str], tuple[Path, Network]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """`made(family)`: a folder that transformers wrote, and the network that edgetl reads from it."""
    import transformers

    def make(family: str) -> tuple[Path, Network]:
        torch.manual_seed(0)
        given: dict[str, Any] = {**SIZES, "id2label": dict(enumerate(LABELS))}  # other labels would get a new head
        if family == "hf_vit":
            config = transformers.ViTConfig(image_size=16, patch_size=4, num_channels=3, **given)
            model = transformers.ViTForImageClassification(config)
        else:
            config = transformers.BertConfig(vocab_size=60, max_position_embeddings=24, **given)
            model = transformers.BertForSequenceClassification(config)
        model.eval().save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", create(family, str(tmp_path / "theirs"), LABELS, 0)

    return make


def feeds(family: str) -> list[Mapping[str, NDArray[Any]]]:
    random = np.random.default_rng(0)
    if family == "hf_vit":
        return [{"pixel_values": random.normal(size=(batch, 3, 16, 16)).astype(np.float32)} for batch in (1, 3)]
    sizes = ((1, 5), (3, 17))
    return [{"input_ids": random.integers(1, 60, s), "attention_mask": np.ones(s, np.int64)} for s in sizes]


def answers(file: Path, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    more = {name: np.zeros_like(feed["input_ids"]) for name in wanted & {"token_type_ids"}}
    return np.asarray(session.run(["logits"], {**feed, **more})[0])


@pytest.mark.parametrize("family", TASKS)
def test_an_uncut_network_answers_alike_through_either_exporter(family: str, made: Made, tmp_path: Path) -> None:
    folder, net = made(family)
    to_onnx(net, tmp_path / "base.onnx")
    exporter.main_export(str(folder), tmp_path / "optimum", task=TASKS[family], do_validation=False)
    for feed in feeds(family):
        ours, theirs = answers(tmp_path / "base.onnx", feed), answers(tmp_path / "optimum" / "model.onnx", feed)
        assert np.abs(theirs).max() > 1e-3
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("family", ["hf_vit", "hf_bert", "hf_resnet", "hf_mobilenet"])
def test_an_optimum_export_has_the_names_of_ours(family: str, tmp_path: Path) -> None:
    """Modules in reports, repair and bisection are found by the nodes' names."""
    net = create(family, {}, LABELS, 0)
    to_onnx(net, tmp_path / "ours.onnx")
    by_optimum.to_onnx(net, tmp_path / "theirs.onnx")
    ours, theirs = (onnx.load(tmp_path / name) for name in ("ours.onnx", "theirs.onnx"))
    assert working(theirs) == working(ours)
    assert list(theirs.graph.input) == list(ours.graph.input)
    assert list(theirs.graph.output) == list(ours.graph.output)
    assert theirs.opset_import[0].version == ours.opset_import[0].version


def working(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node if node.op_type in WORKING}


def test_a_bundle_says_which_exporter_made_it(made: Made, tmp_path: Path) -> None:
    _, net = made("hf_vit")
    save(net, tmp_path / "network")
    said = {}
    for exporter in ("optimum", "torch"):
        (folder,) = export(tmp_path / "network", exporter=exporter)
        bundle = open_bundle(folder)
        said[bundle.manifest["provenance"]["exporter"].split()[0]] = bundle.manifest["parity"]["max_rel"]
    assert list(said) == ["optimum-onnx", "torch"]
    assert max(said.values()) < 1e-5


def test_an_architecture_that_optimum_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = create("hf_resnet", {}, LABELS, 0)
    monkeypatch.setattr(type(net.module.config), "model_type", "no-such-model")
    with pytest.raises(BadInput, match="knows no no-such-model for image-classification"):
        by_optimum.to_onnx(net, tmp_path / "base.onnx")
    assert not list(tmp_path.iterdir())


def test_torch_exports_what_optimum_does_not_take(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(create("resnet_cifar", {}, LABELS, 0), tmp_path / "network")
    (folder,) = export(tmp_path / "network", exporter="optimum")
    assert open_bundle(folder).manifest["provenance"]["exporter"].startswith("torch ")
    assert "resnet_cifar is no architecture of transformers, so not optimum but torch exports it" in caplog.text


def test_a_bundle_opens_as_a_model_of_optimum(made: Made, tmp_path: Path) -> None:
    import transformers

    folder, net = made("hf_vit")
    save(net, tmp_path / "network")
    (bundle,) = export(tmp_path / "network")
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(bundle)  # all that optimum needs besides the file
    model = runtime.ORTModelForImageClassification.from_pretrained(bundle, file_name="model.onnx")
    for feed in feeds("hf_vit"):
        tensors = {name: torch.from_numpy(values) for name, values in feed.items()}
        with torch.inference_mode():
            torch.testing.assert_close(model(**tensors).logits, net.logits(tensors), rtol=1e-4, atol=1e-6)
