"""A learngene in a folder: it comes back as it was, or is refused with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgetl import store
from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.methods.tleg import learngene
from edgetl.methods.tleg.learngene import HEADER, WEIGHTS, expand, load, relabelled
from edgetl.network import saved
from tests.methods.tleg_networks import KINDS, LABELS, SHARINGS, gene


def rewritten(folder: Path, **changes: object) -> None:
    """Change the header and seal it again, as a forger would."""
    header = {**json.loads((folder / HEADER).read_text()), **changes}
    plain = {k: v for k, v in header.items() if k != saved.SEAL}
    store.write_json(folder / HEADER, {**plain, saved.SEAL: store.digest(plain)})


def refused(folder: Path) -> Refused:
    with pytest.raises(Refused) as caught:
        load(folder)
    assert caught.value.code == 5
    assert caught.value.fix
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gene(depth=4).save(tmp_path / "gene")
    return tmp_path / "gene"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: s.form)
def test_it_comes_back_as_it_was(kind, sharing, tmp_path):
    before = gene(kind, sharing, depth=4)
    before.save(tmp_path)
    after = load(tmp_path)
    assert (after.sharing, after.labels, after.config, after.depth) == (sharing, LABELS, before.config, 4)
    assert after.facts == {**before.facts, "prep": dict(before.facts["prep"])}
    for depth in (1, 3, 9):
        assert expand(after, depth).digest == expand(before, depth).digest


def test_it_names_its_convention_and_hash(folder):
    header = json.loads((folder / HEADER).read_text())
    assert header["convention"] == "tleg-1"
    assert header["weights"] == {"file": WEIGHTS, "sha256": store.file_digest(folder / WEIGHTS)}
    assert sorted(p.name for p in folder.iterdir()) == [HEADER, WEIGHTS]


def test_a_tokenizer_goes_with_it(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    found = gene("mean, norm behind", depth=2)
    replace(found, facts={"prep": {"tokenizer": str(tokenizer), "length": 8}}).save(tmp_path / "gene")
    tokenizer.unlink()
    assert load(tmp_path / "gene").facts["prep"] == {"tokenizer": str(tmp_path / "gene/tokenizer.json"), "length": 8}
    assert str(tmp_path) not in (tmp_path / "gene" / HEADER).read_text()
    (tmp_path / "gene/tokenizer.json").write_text("{ }")
    assert "tokenizer" in refused(tmp_path / "gene").problem


def test_another_convention_is_refused_and_named(folder):
    rewritten(folder, convention="tleg-2")
    told = refused(folder)
    assert "tleg-2" in told.problem
    assert "tleg-1" in told.problem


def test_a_convention_changed_by_hand_is_refused(folder):
    header = json.loads((folder / HEADER).read_text())
    store.write_json(folder / HEADER, {**header, "convention": "sws-1"})
    assert "changed" in refused(folder).problem


def test_changed_weights_are_refused(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))
    assert "sha256" in refused(folder).problem
    (folder / WEIGHTS).unlink()
    assert "missing" in refused(folder).problem


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"sets": 3},
        {"sets": "2"},
        {"sets": 10**9},
        {"family": "no_such"},
        {"family": "hf_resnet"},
        {"labels": ["a"]},
        {"labels": [1, 2, 3]},
        {"config": {}},
        {"config": {"hidden_size": 10**6}},
        {"weights": {"file": "/etc/passwd", "sha256": "0"}},
        {"facts": {"prep": {"no_such": 1}}},
    ],
)
def test_forged_headers_are_refused(folder, changes):
    rewritten(folder, **changes)
    refused(folder)


def test_a_folder_without_one_is_told(tmp_path):
    with pytest.raises(BadInput, match="no learngene") as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == 2
    (tmp_path / HEADER).write_text("{")
    assert "JSON" in refused(tmp_path).problem


@pytest.mark.parametrize("depth", [0, -1, 257])
def test_impossible_depths_are_told(depth):
    with pytest.raises(EdgetlError) as caught:
        expand(gene(depth=2), depth)
    assert caught.value.code == 2


def test_other_labels_get_a_new_head(tmp_path):
    found = gene(depth=3)
    assert relabelled(found, LABELS, 0) is found
    other = relabelled(found, ("x", "y"), 0)
    net = expand(other, 2)
    assert net.labels == ("x", "y")
    assert net.logits(net.family.example(net.config, 2)).shape == (2, 2)
    differ = {k for k, v in other.tensors.items() if not torch.equal(v, found.tensors[k])}
    assert differ == {"head.weight", "head.bias"}
    other.save(tmp_path)
    assert learngene.load(tmp_path).labels == ("x", "y")
