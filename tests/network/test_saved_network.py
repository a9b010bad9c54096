from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.network.family import Prep
from edgetl.network.network import check_plain, create, load, save

SIZES = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture
def net():
    dense = create("hf_vit", SIZES, ["a", "b"], seed=0)
    groups = dense.family.units(dense.module)
    return dense.edit([groups[0].keep([]), groups[1].keep([0, 5]), groups[2].keep([1, 3])])


@pytest.fixture
def folder(net, tmp_path):
    save(net, tmp_path / "net", {"key": "k1"})
    return tmp_path / "net"


def change(folder, **fields):
    path = folder / "network.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_saved_network_comes_back_equal(net, folder):
    again = load(folder)
    inputs = net.family.example(net.config, 2)
    assert torch.equal(again.logits(inputs), net.logits(inputs))
    assert (again.digest, again.labels, again.edits) == (net.digest, net.labels, net.edits)
    assert json.loads((folder / "network.json").read_text())["key"] == "k1"


def test_saving_twice_writes_the_same_bytes(net, folder, tmp_path):
    save(net.copy(), tmp_path / "other", {"key": "k1"})
    for name in ("network.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_no_folder_of_this_host_is_written(folder, tmp_path):
    assert str(tmp_path) not in (folder / "network.json").read_text()


def test_a_flipped_byte_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match="sha256 differs") as caught:
        load(folder)
    assert caught.value.code == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"schema_version": None},
        {"schema_version": 2},
        {"family": "hf_nothing"},
        {"family": "../hf_vit"},
        {"labels": [1, 2]},
        {"labels": ["a", "b", "c"]},
        {"labels": ["b", "a"]},
        {"edits": []},
        {"edits": [{"edit": "shell"}]},
        {"weights": {"file": "../model.safetensors", "sha256": "0"}},
        {"weights": {}},
        {"config": {}},
        {"config": {"hidden_size": 16, "evil": 1}},
        {"facts": {"prep": {"size": "big"}}},
        {"facts": {"prep": {"unknown": 1}}},
        {"facts": {"prep": []}},
        {"digest": 3},
        {"tokenizer": {"file": "tokenizer.json", "sha256": "0"}},
    ],
)
def test_a_changed_header_is_refused(folder, fields):
    change(folder, **fields)
    with pytest.raises(Refused):
        load(folder)


def test_a_configuration_that_asks_for_all_memory_is_refused_quickly(folder):
    config = json.loads((folder / "network.json").read_text())["config"]
    change(folder, config={**config, "hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 64})
    with pytest.raises(Refused):
        load(folder)


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, "\x00"])
def test_a_header_that_is_no_json_mapping_is_refused(folder, text):
    (folder / "network.json").write_text(text)
    with pytest.raises(Refused):
        load(folder)


def test_a_missing_file_is_refused(folder, tmp_path):
    with pytest.raises(Refused, match=r"network\.json"):
        load(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Refused, match="is missing"):
        load(folder)


def test_a_saved_network_is_a_source_that_keeps_or_renews_its_head(net, folder):
    same = create("hf_vit", str(folder), ["a", "b"], seed=5)
    assert same.digest == net.digest
    assert same.facts["head"] == "kept"
    other = create("hf_vit", str(folder), ["x", "y", "z"], seed=5)
    assert other.facts["head"] == "new"
    assert other.logits(net.family.example(net.config, 2)).shape == (2, 3)
    assert other.edits == net.edits
    body = [k for k in net.state() if not k.startswith("head.")]
    assert all(torch.equal(net.state()[k], other.state()[k]) for k in body)
    assert torch.equal(other.state()["head.bias"], torch.zeros(3))
    with pytest.raises(BadInput, match="family hf_vit"):
        create("hf_bert", str(folder), ["a", "b"], seed=0)


def test_a_text_network_carries_its_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    text = create("hf_bert", {}, ["a", "b"], seed=0)
    save(text, tmp_path / "one", assets=tmp_path)
    again = load(tmp_path / "one")
    prep = again.family.prep(str(tmp_path / "one"), again.config)
    assert prep == Prep(tokenizer=str(tmp_path / "one" / "tokenizer.json"), length=128)
    save(again, tmp_path / "two")
    (tmp_path / "two" / "tokenizer.json").write_text("{ }")
    with pytest.raises(Refused, match=r"tokenizer\.json"):
        load(tmp_path / "two")


def test_repeated_labels_are_an_error():
    with pytest.raises(BadInput, match="'a' is given twice"):
        create("hf_vit", SIZES, ["a", "b", "a"], seed=0)


def freeze(module):
    next(module.parameters()).requires_grad_(False)


def train(module):
    module.train()


def hook(module):
    module.vit.register_forward_hook(lambda *_: None)


def wrap(module):
    module.classifier = nn.Sequential(module.classifier)


def norm(module):
    nn.utils.parametrizations.weight_norm(module.classifier)


def nudge(module):
    with torch.no_grad():
        module.classifier.bias.add_(1)


@pytest.mark.parametrize("fault", [freeze, train, hook, wrap, norm, nudge])
def test_what_a_step_left_behind_is_found(net, folder, fault):
    check_plain(net, folder)
    fault(net.module)
    with pytest.raises(EdgetlError, match="is not plain") as caught:
        check_plain(net, folder)
    assert caught.value.code == 1


def test_the_digest_sees_weights_edits_and_labels(net):
    changed = net.copy()
    nudge(changed.module)
    others = {changed.digest, replace(net, labels=("b", "a")).digest, replace(net, edits=()).digest}
    assert len(others | {net.digest}) == 4
    assert replace(net, facts={"head": "kept"}).digest == net.digest
