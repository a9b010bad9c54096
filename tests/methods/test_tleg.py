"""The step: what it makes, what branches share, what it refuses, and that it learns."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgetl import store
from edgetl.errors import BadInput
from edgetl.losses.dkd import Dkd
from edgetl.losses.hidden import Hidden
from edgetl.losses.logits import softened
from edgetl.methods.finetune import Finetune
from edgetl.methods.tleg import Tleg, learngene
from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learn import Lessons, Plan, _begun, learn, tuned
from edgetl.methods.tleg.learngene import HEADER, WEIGHTS, by_kind, expand
from edgetl.methods.tleg.start import started
from edgetl.network.network import create
from edgetl.recipe.read import check
from edgetl.recipe.schema import Schedule, Teacher
from edgetl.train.answers import answers
from tests.methods.test_training import texts
from tests.methods.tleg_networks import BERT, LABELS, LINE, backbone, gene

__all__ = ["texts"]

SHORT = Schedule(epochs=1, lr=2e-3, batch=32)
QUICK = {"use": "tleg", "learn": SHORT, "schedule": SHORT, "init": "secant"}


def accuracy(net, data, part="validation"):
    rows = data.rows(part)
    return (answers(net, data, rows).argmax(-1) == data.prepared.y[rows]).mean()


@pytest.fixture
def trained(context):
    """A backbone of six blocks that solves the task."""
    schedule = Schedule(epochs=6, lr=3e-3, batch=16)
    net = create("hf_vit", {**backbone(depth=6).config, "num_hidden_layers": 6}, LABELS, 0)
    return Finetune(use="finetune", schedule=schedule).run(net, context("backbone"))


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_a_student_of_any_depth(depth, context):
    start = backbone(depth=4)
    student = Tleg(**QUICK, depth=depth).run(start.copy(), context())
    assert student.config == {**start.config, "num_hidden_layers": depth}
    assert student.labels == LABELS
    assert student.facts["prep"] == start.facts["prep"]
    assert student.facts["learngene"]["start"] == "secant"
    assert len(student.family.stages(student.module)) == depth


def test_half_of_the_blocks_without_a_depth(context):
    assert Tleg(**{**QUICK, "schedule": None}).run(backbone(depth=3), context()).config["num_hidden_layers"] == 2


def test_branches_share_one_learngene_that_fine_tuning_does_not_change(context, caplog):
    ctx = context()
    with caplog.at_level(logging.INFO, "edgetl"):
        Tleg(**QUICK, depth=1).run(backbone(depth=3), ctx)
        (folder,) = ctx.work.glob("shared/learngene-*")
        before = [store.file_digest(folder / name) for name in (HEADER, WEIGHTS)]
        Tleg(**QUICK, depth=4).run(backbone(depth=3), replace(ctx, seed=2))
    assert [folder] == list(ctx.work.glob("shared/learngene-*"))
    assert [store.file_digest(folder / name) for name in (HEADER, WEIGHTS)] == before
    (said,) = [r.message for r in caplog.records if "R²" in r.message]
    assert "0.667" in said  # of 2 sets to 3 blocks by chance


def test_a_saved_learngene_expands_without_learning_again(context, tmp_path):
    first = context("first")
    Tleg(**QUICK, depth=2).run(backbone(depth=3), first)
    (folder,) = first.work.glob("shared/learngene-*")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    second = context("second")
    step = Tleg(use="tleg", learngene=str(moved), depth=7, schedule=None)
    student = step.run(backbone(depth=3), second)
    assert student.digest == expand(learngene.load(folder), 7).digest
    assert not (second.work / "shared").exists()
    assert step.sources() == (("hf_vit", str(moved)),)


def test_a_saved_learngene_needs_no_trained_network_where_nothing_teaches():
    assert Tleg(use="tleg").needed() == {"trained"}
    assert Tleg(use="tleg", learngene="x").needed() == {"trained"}
    assert not Tleg(use="tleg", learngene="x", distil=False).needed()
    assert not Tleg(use="tleg", learngene="x", schedule=None).needed()


def test_the_paper_is_a_mode():
    step = Tleg(use="tleg", mode="paper")
    assert (step.init, step.depths, step.match, step.distil) == ("random", "one", 0, False)
    assert [o.use for o in step._first] == ["logits"]
    (labels,) = step._second
    assert labels.smoothing == 0.1
    assert Tleg(use="tleg", mode="paper", depths=(3, 6)).depths == (3, 6)
    again = Tleg.model_validate(step.model_dump(mode="json"))
    assert again == step


def test_a_teacher_of_its_own_is_read(context):
    teacher = backbone(depth=2, seed=5)
    step = Tleg(**QUICK, depth=2, teacher=Teacher(step="dense"))
    assert step.reads() == ("dense",)
    with_it = step.run(backbone(depth=3), context("a", past={"dense": teacher}))
    without = Tleg(**QUICK, depth=2).run(backbone(depth=3), context("b"))
    assert with_it.digest != without.digest


def test_a_teacher_with_other_labels_is_refused(context):
    other = create("hf_vit", backbone(depth=2).config, ("x", "y"), 0)
    step = Tleg(**QUICK, teacher=Teacher(step="dense"))
    with pytest.raises(BadInput, match="labels"):
        step.run(backbone(depth=2), context(past={"dense": other}))


def test_networks_without_equal_blocks_are_refused(context):
    resnet = create("resnet_cifar", {}, LABELS, 0)
    with pytest.raises(BadInput, match="resnet_cifar"):
        Tleg(**QUICK).run(resnet, context("a"))
    whole = backbone(depth=2)
    cut = whole.edit([whole.family.units(whole.module)[0].keep([0])])
    with pytest.raises(BadInput, match="was cut"):
        Tleg(**QUICK).run(cut, context("b"))


def test_losses_that_look_at_blocks_are_refused_in_stage_1(context):
    with pytest.raises(BadInput, match="blocks") as caught:
        Tleg(**QUICK, losses=(Hidden(),)).run(backbone(depth=2), context())
    assert "match" in caught.value.fix


def test_losses_of_the_answers_are_those_of_the_recipe(context):
    one = Tleg(**QUICK, depth=2, losses=(Dkd(),)).run(backbone(depth=2), context("a"))
    other = Tleg(**QUICK, depth=2).run(backbone(depth=2), context("b"))
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"depth": 0}, "one block or more"),
        ({"depth": "twelve"}, "depth"),
        ({"depths": (0, 3)}, "one block or more"),
        ({"depths": ()}, "several"),
        ({"constrained": True, "schedule": None}, "constrained"),
        ({"teacher": {"step": "a", "temperature": 4}, "losses": [{"use": "logits"}]}, "temperature"),
        ({"share": "spiral"}, "linear"),
    ],
)
def test_impossible_settings_are_told(fields, said):
    with pytest.raises(ValidationError, match=said):
        Tleg(use="tleg", **fields)


@pytest.mark.parametrize(
    ("made", "fields", "said", "fix"),
    [
        (lambda: gene("mean, norm behind", depth=2), {}, "hf_bert", "hf_bert"),
        (lambda: gene(sharing=Sharing("stagewise", 3), depth=3), {}, "sws-1", "share: stagewise"),
        (lambda: gene(depth=2), {"share": "polynomial"}, "tleg-1", "share: linear"),
        (lambda: gene(depth=2), {"large": True}, "pixel_values", "reads this data"),
    ],
)
def test_learngenes_that_do_not_fit_are_refused(made, fields, said, fix, context, tmp_path):
    made().save(tmp_path / "gene")
    net = backbone(depth=2)
    if fields.pop("large", False):
        net = create("hf_vit", {**net.config, "image_size": 16}, LABELS, 0)
    step = Tleg(use="tleg", learngene=str(tmp_path / "gene"), depth=2, **fields)
    with pytest.raises(BadInput, match=said) as caught:
        step.run(net, context())
    assert fix in caught.value.fix


def test_another_vocabulary_is_refused(context, tmp_path):
    (tmp_path / "ours.json").write_text("{}")
    (tmp_path / "theirs.json").write_text("{ }")
    net, found = backbone("mean, norm behind", 2), gene("mean, norm behind", depth=2)
    ours, theirs = ({"prep": {"tokenizer": str(tmp_path / name)}} for name in ("ours.json", "theirs.json"))
    replace(found, facts=theirs).save(tmp_path / "gene")
    step = Tleg(use="tleg", learngene=str(tmp_path / "gene"), depth=3, schedule=None)
    with pytest.raises(BadInput, match="tokenizer"):
        step.run(replace(net, facts=ours), context("a"))
    student = step.run(replace(net, facts=theirs), context("b"))
    assert student.facts["prep"] == theirs["prep"]


def test_more_sets_than_blocks_leave_other_ways_to_start(context):
    fields = {**QUICK, "share": "stagewise", "stages": 4, "schedule": None}
    with pytest.raises(BadInput, match="4 sets") as caught:
        Tleg(**fields).run(backbone(depth=2), context("a"))
    assert "repeat" in caught.value.fix
    student = Tleg(**{**fields, "init": "auto"}).run(backbone(depth=2), context("b"))
    assert student.facts["learngene"]["start"] != "secant"


@pytest.mark.parametrize("share", ["linear", "stagewise", "polynomial"])
def test_a_constrained_student_stays_an_expansion(share, context):
    fields = {**QUICK, "share": share, "stages": 2, "order": 2, "depth": 6}
    loose = Tleg(**fields).run(backbone(depth=3), context("a"))
    tight = Tleg(**fields, constrained=True).run(backbone(depth=3), context("b"))
    own = Tleg(**fields, constrained=True, coefficients=5).run(backbone(depth=3), context("c"))
    sharing = {"linear": LINE, "stagewise": Sharing("stagewise", 2), "polynomial": Sharing("polynomial", 3)}[share]
    table = sharing.coefficients(6).double()
    of_loose, of_tight, of_own = (
        torch.stack(by_kind(net.state())["ffn.up.weight"]).flatten(1) for net in (loose, tight, own)
    )
    left = of_tight - table @ torch.linalg.pinv(table) @ of_tight.double()
    assert left.abs().max() < 1e-5
    ranks = [int(torch.linalg.matrix_rank(blocks, rtol=1e-4)) for blocks in (of_loose, of_tight, of_own)]
    assert ranks == [6, sharing.sets, sharing.sets]


def test_coefficients_are_learnt_before_the_student_is_tuned(context):
    fields = {**QUICK, "depth": 3, "schedule": None}
    plain = Tleg(**fields).run(backbone(depth=4), context("a"))
    own = Tleg(**fields, coefficients=20).run(backbone(depth=4), context("b"))
    blocks = torch.stack([*by_kind(own.state())["ffn.up.weight"], *by_kind(plain.state())["ffn.up.weight"]])
    assert own.digest != plain.digest
    assert torch.linalg.matrix_rank(blocks.flatten(1), rtol=1e-4) == 2  # of the same two sets


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_step_ends_with_the_same_bytes(after, context, killed):
    """In stage 1 and in stage 2."""
    two = Schedule(epochs=2, lr=2e-3, batch=32)
    step = Tleg(**{**QUICK, "learn": two, "schedule": two}, depth=2)
    whole = step.run(backbone(depth=3), context("whole"))
    ctx = context("parts")
    with killed(after=after):
        step.run(backbone(depth=3), ctx)
    if after == 1:  # the run folder drops what was not finished
        shutil.rmtree(next(iter(ctx.work.glob("shared/learngene-*"))))
    assert step.run(backbone(depth=3), ctx).digest == whole.digest


def test_a_learngene_learns_and_serves_depths_it_never_had(trained, context, tiny):
    """Depths between those drawn beat chance, and the worst depth gains from having been drawn."""
    losses = Tleg(use="tleg")._first
    schedule = Schedule(epochs=4, lr=2e-3, batch=16)
    worst, loss = {}, {}
    for name, depths in (("several", (1, 6)), ("one", (6,))):
        ctx = context(name)
        plan = Plan(LINE, schedule, losses, depths=depths, start="random")
        found = learn(trained.copy(), ctx, plan)
        reached = [accuracy(expand(found, depth), tiny) for depth in (1, 2, 3, 4, 6)]
        loss[name] = [kd(expand(found, depth), trained, tiny) for depth in (1, 2, 3, 4, 6)]
        worst[name] = min(reached)
        begun = kd(expand(started(trained, LINE, "random", ctx.seed), 6), trained, tiny)
        assert loss[name][-1] < 0.5 * begun
    assert worst["several"] > 0.6  # chance is a third
    assert max(loss["several"]) < max(loss["one"])


def kd(student, teacher, data):
    """The divergence of a student's answers from its teacher's, per sample."""
    rows = data.rows("validation")
    ours, theirs = (torch.from_numpy(answers(n, data, rows)) for n in (student, teacher))
    return float(softened(theirs, ours, 2.0)) / len(rows)


def test_the_best_of_the_starts_is_taken(trained, context, caplog):
    plan = Plan(LINE, Schedule(epochs=20, lr=1e-3, batch=16), Tleg(use="tleg")._first, trial=10)
    with caplog.at_level(logging.INFO, "edgetl"):
        _, best = _begun(Lessons(trained, trained.copy(), context(), plan), (2, 6))
    (said,) = [r.message for r in caplog.records if "trial from each" in r.message]
    words = said.partition("start: ")[2].partition(";")[0].split(", ")
    losses = {way: float(loss) for way, loss in (word.split() for word in words)}
    assert best == min(losses, key=losses.__getitem__)
    assert losses["random"] > losses[best]


def test_texts_are_learnt_as_well(texts, context):
    net = create("hf_bert", {**BERT, "num_hidden_layers": 3, "intermediate_size": 24}, texts.labels, 0)
    ctx = replace(context(), data=texts)
    dense = Finetune(use="finetune", schedule=Schedule(epochs=10, lr=1e-2, batch=8)).run(net, ctx)
    longer = Schedule(epochs=6, lr=5e-3, batch=8)
    student = Tleg(use="tleg", init="secant", depth=2, learn=longer, schedule=longer).run(
        dense, replace(ctx, work=ctx.work / "tleg")
    )
    rows = texts.rows("train")
    assert (answers(student, texts, rows).argmax(-1) == texts.prepared.y[rows]).mean() > 0.9


def test_coefficients_learn_what_their_depth_needs(trained, context, tiny):
    ctx = context()
    plan = Plan(LINE, Schedule(batch=16), Tleg(use="tleg")._first)
    begun = started(trained, LINE, "secant", 0)
    own = tuned(begun, 2, 40, Lessons(trained, trained.copy(), ctx, plan))
    before, after = (kd(expand(begun, 2, tables), trained, tiny) for tables in (None, own.found()))
    assert after < 0.8 * before


def test_a_recipe_names_one_student_for_every_depth():
    raw = {
        "name": "family",
        "model": {"family": "hf_vit", "source": {"image_size": 8, "patch_size": 4, "num_channels": 1}},
        "data": {"use": "digits"},
        "steps": [{"use": "finetune", "name": "dense"}, {"use": "tleg", "depth": [3, 6, 12]}],
    }
    recipe, errors = check(raw, "family.yaml")
    assert errors == []
    assert recipe is not None
    assert recipe.student_names() == ("tleg-3", "tleg-6", "tleg-12")
    again, errors = check(recipe.resolved, "family.yaml")
    assert errors == []
    assert again is not None
    steps = [[n.step.model_dump(exclude={"name"}) for n in r.nodes[1:]] for r in (recipe, again)]
    assert steps[0] == steps[1]
    bare = {**raw, "steps": [{"use": "tleg", "learngene": "/a/gene", "depth": 3, "schedule": None}]}
    recipe_of_bare, errors = check(bare, "family.yaml")
    assert errors == []  # nothing learns from the untrained network
    assert recipe_of_bare is not None
    elsewhere = {**bare, "steps": [{**bare["steps"][0], "learngene": "/b/gene"}]}
    moved, _ = check(elsewhere, "family.yaml")
    assert moved is not None
    digests = {r.digest(r.nodes[-1], r.targets[0]) for r in (recipe_of_bare, moved)}
    assert len(digests) == 1  # where it lies says nothing
    _, errors = check({**raw, "steps": [{"use": "tleg", "depth": 3}]}, "family.yaml")
    assert any("trained" in e.problem for e in errors)
    wrong = {**raw, "steps": [raw["steps"][0], {"use": "tleg", "depth": [3, 0]}]}
    _, errors = check(wrong, "family.yaml")
    assert any("one block or more" in e.problem for e in errors)
    assert np.isfinite(recipe.nodes[-1].step.passes(100, 10))
