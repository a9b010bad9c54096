"""finetune, lora, distill: what each changes, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgetl.errors import BadInput, Diverged
from edgetl.methods import lora
from edgetl.methods.distill import Distill
from edgetl.methods.finetune import Finetune
from edgetl.methods.lora import Lora
from edgetl.network.edits import Constant
from edgetl.network.network import create
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Schedule, Teacher
from edgetl.train import checkpoint
from edgetl.train.answers import answers
from edgetl.train.batches import Data

QUICK = Schedule(epochs=2, lr=2e-3, batch=16)
LORA = {"use": "lora", "schedule": QUICK, "rank": 4}


def changed(before, after):
    old = before.state()
    return {k for k, v in after.state().items() if not torch.equal(v, old[k])}


def test_finetune_trains_everything_or_the_head(network, context):
    start = network(0)
    everything = Finetune(use="finetune", schedule=QUICK).run(start.copy(), context("a"))
    head = Finetune(use="finetune", schedule=QUICK, part="head").run(start.copy(), context("b"))
    assert changed(start, everything) == set(start.state())
    assert changed(start, head) == {"head.weight", "head.bias"}


def test_digest_read_before_training_does_not_survive_it(network, context):
    net = network(0)
    before = net.digest
    assert Finetune(use="finetune", schedule=QUICK).run(net, context()).digest != before


def test_a_teacher_is_read_by_name_and_pulls_the_answers(network, context, tiny):
    long = Schedule(epochs=8, lr=3e-3, batch=16)
    teacher = Finetune(use="finetune", schedule=long).run(network(3), context("t"))
    step = Finetune(use="finetune", schedule=long, teacher=Teacher(step="dense", weight=1.0))
    assert step.reads() == ("dense",)
    student = step.run(network(0), context("s", past={"dense": teacher}))
    batch = tiny.batch(tiny.rows("test"))
    with torch.no_grad():
        wanted, far, near = (n.logits(batch).log_softmax(-1) for n in (teacher, network(0), student))
    assert (near - wanted).abs().mean() < 0.3 * (far - wanted).abs().mean()


def test_a_teacher_with_other_labels_is_refused(context, network):
    other = create("hf_vit", network(0).config, ("x", "y"), 0)
    step = Finetune(use="finetune", schedule=QUICK, teacher=Teacher(step="dense"))
    with pytest.raises(BadInput, match="labels"):
        step.run(network(0), context(past={"dense": other}))


def test_lora_changes_only_its_targets_and_the_head(network, context):
    start = network(0)
    net = Lora(**LORA, targets=("layers.0.attn.*", "*.ffn.up")).run(start.copy(), context("a"))
    wanted = {f"layers.0.attn.{x}.weight" for x in "qkvo"} | {f"layers.{i}.ffn.up.weight" for i in (0, 1)}
    assert changed(start, net) == wanted | {"head.weight", "head.bias"}
    frozen = Lora(**LORA, targets=("*.attn.q",), train_head=False).run(start.copy(), context("b"))
    assert changed(start, frozen) == {"layers.0.attn.q.weight", "layers.1.attn.q.weight"}


def test_lora_adds_a_matrix_of_its_rank(network, context):
    start = network(0)
    net = Lora(**{**LORA, "rank": 2}).run(start.copy(), context())
    delta = net.state()["layers.0.ffn.up.weight"] - start.state()["layers.0.ffn.up.weight"]
    sizes = torch.linalg.svdvals(delta.double())
    assert sizes[1] > 1e-4
    assert sizes[2] < 1e-5 * sizes[0]


def test_lora_merges_to_the_answers_it_was_trained_to(network, context, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(lora, "_check", lambda before, after: seen.append((before, after)))
    net = Lora(**LORA).run(network(0), context())
    (before, after), batch = seen[0], tiny.batch(tiny.rows("validation")[:8])
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    with torch.no_grad():
        torch.testing.assert_close(net.logits(batch).double(), before, rtol=1e-4, atol=1e-5)
    assert {type(m).__module__.split(".")[0] for m in net.module.modules()}.isdisjoint({"peft"})


def test_lora_works_on_a_cut_network_with_constant_places(network, context):
    whole = network(0)
    groups = {g.name: g for g in whole.family.units(whole.module)}
    cut = whole.edit([groups["layers.0.heads"].keep([]), groups["layers.1.neurons"].keep([1, 5, 7])])
    assert isinstance(cut.edits[0], Constant)
    net = Lora(**LORA).run(cut.copy(), context())
    assert net.edits == cut.edits
    assert "layers.1.ffn.up.weight" in changed(cut, net)


def test_lora_names_the_layers_it_knows(network, context):
    with pytest.raises(BadInput, match=r"\*\.nothing") as caught:
        Lora(**LORA, targets=("*.nothing",)).run(network(0), context())
    assert "attn.q" in caught.value.fix


def test_a_merge_that_is_not_exact_is_an_error():
    with pytest.raises(Diverged, match="merging"):
        lora._check(torch.ones(2, 3), torch.ones(2, 3) * 1.001)
    with pytest.raises(Diverged):
        lora._check(torch.ones(2, 3), torch.full((2, 3), torch.nan))


def test_distill_replaces_the_architecture(network, context):
    small = {**network(0).config, "hidden_size": 8, "num_hidden_layers": 1}
    small = {k: v for k, v in small.items() if k not in {"model_type", "num_labels"}}
    step = Distill(use="distill", schedule=QUICK, student={"family": "hf_vit", "source": small})
    net = step.run(network(0), context())
    assert net.config["hidden_size"] == 8
    assert net.labels == network(0).labels
    assert net.facts["prep"] == network(0).facts["prep"]
    assert Distill.cuts
    assert Distill.needs == {"trained"}


def test_distill_refuses_a_student_of_another_size(network, context):
    step = Distill(use="distill", student={"family": "hf_vit", "source": {"image_size": 16, "num_channels": 1}})
    with pytest.raises(BadInput, match="16") as caught:
        step.run(network(0), context())
    assert "size" in caught.value.fix


@pytest.mark.parametrize(
    ("cls", "fields"),
    [(Lora, {"rank": 0}), (Lora, {"dropout": 1.0}), (Finetune, {"part": "tail"}), (Distill, {"weight": 2})],
)
def test_impossible_values_are_refused(cls, fields):
    with pytest.raises(ValidationError):
        cls(use="x", **fields)


@pytest.fixture
def texts(tmp_path):
    """60 texts of up to 6 tokens; the class is the first token."""
    random = np.random.default_rng(0)
    y = np.arange(60, dtype=np.int64) % 2
    mask = (np.arange(6) < random.integers(2, 7, (60, 1))).astype(np.uint8)
    ids = (random.integers(8, 30, (60, 6)) * mask).astype(np.int32)
    ids[:, 0] = 5 + y
    rows = random.permutation(60).astype(np.int64)
    splits = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    operations = ({"op": "tokenize", "file": "tokenizer.json", "length": 6},)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Data(Prepared(tmp_path, Raw("text"), ("no", "yes"), operations, y, splits, inputs, "t", {}))


@pytest.mark.parametrize("cls", [Finetune, Lora, Distill])
def test_texts_are_learnt_as_well(cls, texts, context):
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    net = create("hf_bert", {**sizes, "intermediate_size": 24, "max_position_embeddings": 8}, texts.labels, 0)
    schedule = Schedule(epochs=10, lr=1e-2, batch=8)
    teacher = {"weight": 0.1} if cls is Distill else {"teacher": Teacher(step="dense", weight=0.1)}
    ctx = replace(context(past={"dense": net.copy()}), data=texts)
    result = cls(use="x", schedule=schedule, **teacher).run(net.copy(), ctx)
    rows = texts.rows("train")
    assert (answers(result, texts, rows).argmax(-1) == texts.prepared.y[rows]).mean() > 0.9


@pytest.mark.parametrize("cls", [Lora, Distill])
def test_a_killed_step_ends_with_the_same_bytes(cls, network, context, killed, monkeypatch):
    step = cls(use="x", schedule=QUICK)
    whole = step.run(network(0), context("whole"))
    with killed():
        step.run(network(0), context("parts"))
    ctx = context("parts")
    assert list(ctx.work.rglob("epoch-1.safetensors"))
    shutil.rmtree(ctx.work / "shared", ignore_errors=True)
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda *args: saved.append(len(args[-1])))
    assert step.run(network(0), ctx).digest == whole.digest
    assert saved == [2]
