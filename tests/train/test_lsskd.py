"""The properties of layered self-distillation, on a small ViT, a small ResNet and a small BERT."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.losses._heads import heads, hints, stages_of
from edgetl.losses._memory import Twin
from edgetl.losses.lsskd import Layered, Lsskd, aggregated
from edgetl.losses.ps_kd import with_earlier
from edgetl.methods.lsskd import LayeredTraining
from edgetl.network.network import Network, create
from edgetl.recipe.schema import Schedule
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Lesson, Term
from edgetl.train.taps import tapped
from edgetl.train.views import check, expanded, order

RESNET = {"depth": 14, "channels": 4, "num_channels": 1, "image_size": 8}
LABELS = ("left", "middle", "right")


def resnet(seed: int) -> Network:
    return create("resnet_cifar", RESNET, LABELS, seed)


@pytest.fixture
def layered(context):
    """The loss for a network as published, with options."""
    count = iter(range(1000))

    def make(net: Network, epochs: int = 4, **options) -> Layered:
        course = Course(net, None, context(f"lsskd{next(count)}"), epochs)
        (term,) = terms([Lsskd(**{"mode": "paper", **options})], course)
        return term.loss

    return make


def said(net: Network, loss: Layered, batch: Mapping[str, Tensor], progress: float = 0.0) -> dict[str, float]:
    _, logs = Lesson(net, [Term(loss)])(batch, progress)
    return {name: float(value) for name, value in logs.items()}


class TestViews:
    def test_rotations_are_ordered_by_sample_and_undo_each_other(self):
        x = torch.randn(3, 2, 4, 4)
        batch = expanded({"pixel_values": x, "labels": torch.tensor([2, 0, 1]), "index": torch.tensor([7, 8, 9])}, 4)
        views = batch["pixel_values"].view(3, 4, 2, 4, 4)
        assert torch.equal(views[:, 0], x)
        for k in range(4):
            assert torch.equal(torch.rot90(views[:, k], 4 - k, (2, 3)), x)
        assert batch["labels"].tolist() == [2] * 4 + [0] * 4 + [1] * 4
        assert batch["view"].tolist() == [0, 1, 2, 3] * 3
        assert batch["index"].tolist() == [7] * 4 + [8] * 4 + [9] * 4

    @given(st.integers(0, 12), st.integers(0, 3))
    def test_texts_keep_ends_padding_and_words_and_undo_themselves(self, words, padding):
        length = words + 2
        mask = torch.tensor([[1] * length + [0] * padding])
        ids = torch.arange(1, length + padding + 1)[None]
        kept = torch.arange(length + padding) >= length - 1
        kept[0] = True
        seen = set()
        for k in range(4):
            one = order(mask, swapped=bool(k & 1), turned=bool(k & 2))
            assert sorted(one[0].tolist()) == list(range(length + padding))
            assert torch.equal(one[0][kept], torch.arange(length + padding)[kept])
            assert torch.equal(ids.gather(1, one).gather(1, one), ids)
            seen.add(tuple(one[0].tolist()))
        assert len(seen) == 4 or words < 4
        both = [order(mask, swapped=a, turned=b) for a, b in ((True, False), (False, True))]
        assert torch.equal(ids.gather(1, both[0]).gather(1, both[1]), ids.gather(1, both[1]).gather(1, both[0]))

    def test_what_the_data_does_not_have_is_refused(self):
        with pytest.raises(BadInput, match="quarter turn"):
            check("image", 4, (3, 8, 16))
        with pytest.raises(BadInput, match="choose 1, 2 or 4"):
            check("text", 3, (16,))
        check("image", 2, (3, 8, 16))


class TestHeads:
    def test_every_stage_of_a_resnet_has_one_that_ends_with_the_last_stages_shape(self):
        net = resnet(0)
        stages = stages_of(net, 3)
        ends = tuple(stage[-1] for stage in stages)
        assert ends == ("layers.1.1", "layers.2.1", "layers.3.1")
        made = heads(net, stages, 12, "full", 0)
        assert [len(h.blocks) for h in made] == [4, 2, 2]
        assert [len(h.blocks) for h in heads(net, stages, 12, "light", 0)] == [2, 1, 0]
        features = taps_of(net, ends)
        for head in made:
            maps, answers = head(features, net.family.example(net.config, 2))
            assert maps.shape == features["layers.3.1"].shape
            assert answers.shape == (2, 12)

    def test_their_sizes_are_those_of_the_stages_they_copy(self):
        """H1 = stages 2 and 3, H2 = stage 3, H3 = two blocks of stage 3's shape; each with a linear layer of 16."""
        net = create("resnet_cifar", {**RESNET, "depth": 20, "channels": 16}, LABELS, 0)

        def block(ins: int, outs: int) -> int:
            return 9 * ins * outs + 9 * outs * outs + 4 * outs

        two, three = block(32, 32), block(64, 64)
        stage2, stage3 = block(16, 32) + 2 * two, block(32, 64) + 2 * three
        linear = 64 * 400 + 400
        expected = (stage2 + stage3) + stage3 + 3 * three + 3 * linear
        made = heads(net, stages_of(net, 3), 400, "full", 0)
        assert sum(p.numel() for h in made for p in h.parameters()) == expected

    def test_a_transformer_is_cut_into_stages_of_as_many_blocks(self, network):
        net = network(0)
        assert tuple(stage[-1] for stage in stages_of(net, 3)) == ("layers.0", "layers.1")
        made = heads(net, stages_of(net, 2), 12, "full", 0)
        assert [h.place for h in made] == ["layers.0", "layers.1"]

    def test_they_are_fresh(self):
        made = heads(resnet(0), stages_of(resnet(0), 3), 12, "full", 0)
        a, b = (next(h.blocks[-1].parameters()) for h in made[:2])
        assert not torch.equal(a, b)
        first, second = (next(b.parameters()) for b in made[-1].blocks)
        assert not torch.equal(first, second)


def taps_of(net: Network, places):
    with torch.no_grad(), tapped({p: net.at(p) for p in places}) as features:
        net.logits(net.family.example(net.config, 2))
    return features


class TestTerms:
    @pytest.mark.parametrize("views", [1, 2, 4])
    def test_the_first_epoch_is_the_cross_entropy(self, tiny, layered, views):
        net = resnet(0).copy()
        loss = layered(net, views=views).eval()
        net.module.eval()
        batch = tiny.batch(tiny.rows("train")[:6])
        logs = said(net, loss, batch)
        plain = functional.cross_entropy(net.logits(batch), batch["labels"], reduction="sum")
        assert logs["labels"] == pytest.approx(float(plain.detach()), rel=1e-5)

    def test_zero_classifiers_start_at_the_logarithm_of_the_classes(self, tiny, layered):
        net = resnet(0)
        loss = layered(net)
        for layer in (net.module, loss):
            for one in layer.modules():
                if isinstance(one, nn.Linear):
                    nn.init.zeros_(one.weight)
                    nn.init.zeros_(one.bias)
        logs = said(net, loss, tiny.batch(tiny.rows("train")[:6]))
        assert logs["labels"] / 6 == pytest.approx(math.log(3), rel=1e-5)
        assert logs["joint_labels"] / 6 == pytest.approx(3 * math.log(12), rel=1e-5)
        assert logs["deep_to_shallow"] == pytest.approx(0, abs=1e-5)

    def test_what_teaches_is_not_taught(self, tiny, layered):
        net = resnet(0)
        loss = layered(net, hint=1.0)
        batch = tiny.batch(tiny.rows("train")[:6])

        def still(name: str, *modules: nn.Module) -> bool:
            """Whether a term moves nothing of the modules."""
            parameters = [p for m in modules for p in m.parameters()]
            parts = parts_of(loss, net, batch)
            found = torch.autograd.grad(parts[name], parameters, allow_unused=True)
            return all(g is None or not g.any() for g in found)

        first, last = loss.heads[0], loss.heads[-1]
        assert still("deep_to_shallow", last)
        assert not still("deep_to_shallow", first)
        assert still("hint", net.module.layers["3"], net.module.head)
        assert not still("hint", first)
        assert still("labels", *loss.heads)
        assert not still("labels", net.module.layers["3"], net.module.head)

    def test_repeating_a_batch_doubles_the_sums(self, tiny, layered):
        net = resnet(0)
        net.module.eval()
        loss = layered(net).eval()
        rows = tiny.rows("train")[:5]
        one, two = (said(net, loss, tiny.batch(r), 0.3) for r in (rows, np.concatenate([rows, rows])))
        for name, value in one.items():
            assert two[name] == pytest.approx(2 * value, rel=1e-4, abs=1e-5)

    def test_aggregated_reads_each_view_off_itself(self):
        joint = torch.arange(2 * 2 * 6, dtype=torch.float32).view(4, 6)  # 2 samples, 2 views, 3 classes: index 2 y + j
        expected = [[(joint[2 * b, 2 * c] + joint[2 * b + 1, 2 * c + 1]) / 2 for c in range(3)] for b in range(2)]
        assert aggregated(joint, 2).tolist() == expected

    @given(st.integers(0, 999), st.floats(0, 1))
    def test_soft_targets_are_distributions(self, seed, share):
        draw = torch.Generator().manual_seed(seed)
        logits, before = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)
        truth, before = torch.tensor([0, 4, 2, 2]), before.softmax(-1)
        target = (1 - share) * functional.one_hot(truth, 5) + share * before
        assert torch.allclose(target.sum(-1), torch.ones(4, dtype=torch.float64))
        expected = -(target * logits.log_softmax(-1)).sum()
        hard = functional.cross_entropy(logits, truth, reduction="sum")
        assert float(with_earlier(hard, logits, before, share)) == pytest.approx(float(expected))


def parts_of(loss: Layered, net: Network, batch) -> dict[str, Tensor]:
    """Return the terms with their graphs."""
    wide = expanded(batch, loss.views)
    with tapped({p: net.at(p) for p in loss.taps}) as features:
        logits = net.logits(wide)
    found = [head(features, wide) for head in loss.heads]
    answers = torch.stack([a for _, a in found], 1)
    return {
        "labels": functional.cross_entropy(logits[:: loss.views], batch["labels"], reduction="sum"),
        "deep_to_shallow": loss._downwards(answers),
        "hint": hints([h for h, _ in found[:-1]], features[loss.taps[-1]], wide),
    }


class TestMemory:
    def test_a_table_holds_the_last_answers_of_the_rows_seen(self, tiny, layered):
        net = resnet(0)
        loss = layered(net)
        rows = tiny.rows("train")[:4]
        said(net, loss, tiny.batch(rows), 0.0)
        table = loss.memory.upright
        assert torch.allclose(table[rows].sum(-1), torch.ones(4))
        assert not table[tiny.rows("train")[4:]].any()
        assert torch.allclose(loss.memory.heads[rows].sum(-1), torch.ones(4, 4, 3))
        before = loss.memory.heads.clone()
        said(net, loss.eval(), tiny.batch(rows[::-1].copy()), 0.3)
        assert torch.equal(loss.memory.heads, before)

    def test_a_table_and_a_snapshot_of_a_network_that_stands_still_teach_the_same(self, tiny, layered):
        """Without augmentation, batch statistics or a step in between, the past is what it is now."""
        batch = tiny.batch(tiny.rows("train")[:6])
        found = []
        for teacher in ("table", "snapshot", "average"):
            net = resnet(0)
            net.module.eval()
            loss = layered(net, teacher=teacher)
            loss.heads.eval()
            said(net, loss, batch, 0.0)
            found.append(said(net, loss, batch, 0.6))
        for name, value in found[0].items():
            assert [f[name] for f in found] == pytest.approx([value] * 3, rel=1e-4, abs=1e-5)

    def test_a_table_that_is_too_large_gives_way_to_a_snapshot(self, layered):
        assert isinstance(layered(resnet(0), table_mb=0.01).memory, Twin)
        paper = Lsskd(mode="paper")
        assert paper.chosen(50_000, 100, 3) == "table"
        assert paper.chosen(1_281_167, 1000, 4) == "snapshot"

    @pytest.mark.parametrize("teacher", ["table", "snapshot", "average"])
    def test_a_killed_training_ends_with_the_same_bytes(self, tiny, layered, tmp_path, killed, teacher):
        schedule = Schedule(epochs=3, lr=2e-3, batch=32)

        def trained(folder: str) -> tuple[Network, tuple]:
            net = resnet(0)
            loss = layered(net, epochs=3, heads="light", teacher=teacher)
            return net, fit(net, tiny, [Term(loss)], schedule, 5, tmp_path / folder)

        expected, logs = trained("whole")
        with killed():
            trained("parts")
        resumed, again = trained("parts")
        assert again == logs
        assert resumed.digest == expected.digest


def test_the_network_answers_as_if_there_were_no_heads(tiny, layered):
    net, alone = resnet(0), resnet(0)
    lesson = Lesson(net, [Term(layered(net))])
    batch = tiny.batch(tiny.rows("train")[:6])
    lesson.train()
    alone.module.train()
    lesson(batch, 0.0)
    alone.logits(expanded(batch, 4))
    for name, value in alone.module.named_buffers():
        assert torch.equal(value, net.module.get_buffer(name)), name
    lesson.eval()
    alone.module.eval()
    assert torch.equal(net.logits(batch), alone.logits(batch))
    assert set(net.state()) == set(alone.state())


def test_the_step_ends_with_statistics_of_the_samples_as_they_are(tiny, context, caplog):
    loss = Lsskd(mode="paper")
    step = LayeredTraining(use="lsskd", losses=(loss,), schedule=Schedule(epochs=6, lr=5e-3, batch=32))
    with caplog.at_level("INFO", logger="edgetl"):
        made = step.run(resnet(0), context())
    assert "a table of the answers" in caplog.text
    stem = made.at("stem.norm")
    seen: list[Tensor] = []
    made.at("stem.conv").register_forward_hook(lambda _, __, out: seen.append(out))
    rows = tiny.rows("train")
    made.logits(tiny.batch(rows))
    torch.testing.assert_close(stem.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert stem.momentum == 0.1
    test = tiny.batch(tiny.rows("test"))
    assert float((made.logits(test).argmax(-1) == test["labels"]).float().mean()) > 0.9


class TestModes:
    def test_paper_fills_in_what_is_left_out_and_nothing_else(self):
        paper = Lsskd(mode="paper", kl=0.5)
        assert (paper.views, paper.alpha, paper.joint, paper.kl, paper.hint, paper.aggregate) == (
            4,
            0.8,
            1,
            0.5,
            0.05,
            0,
        )
        assert Lsskd.model_validate(paper.model_dump()) == paper

    def test_better_is_labels_and_answers_of_the_epoch_before_for_the_network_and_half_as_much_for_heads(
        self, tiny, layered
    ):
        net = resnet(0)
        net.module.eval()
        loss = layered(net, epochs=4, mode="better")
        assert loss.facts == {"self_teacher": "table"}
        batch = tiny.batch(tiny.rows("train")[:6])
        seen = []
        for head in loss.heads:
            head.eval().register_forward_hook(lambda _, __, out: seen.append(out[1]))
        lesson = Lesson(net, [Term(loss)])
        first, _ = lesson(batch, 0.0)  # remembers
        answers = [net.logits(batch), *seen]
        entropies = [functional.cross_entropy(one, batch["labels"], reduction="sum") for one in answers]
        torch.testing.assert_close(first, entropies[0] + 0.5 * sum(entropies[1:]))
        last, logs = lesson(batch, 0.99)
        own = [-(one.softmax(-1) * one.log_softmax(-1)).sum() for one in answers]
        both = [0.2 * hard + 0.8 * past for hard, past in zip(entropies, own, strict=True)]
        torch.testing.assert_close(last, both[0] + 0.5 * sum(both[1:]))
        assert float(logs["deep_to_shallow"]) == float(logs["hint"]) == float(logs["aggregate"]) == 0

    def test_what_all_views_together_teach_is_added(self, tiny, layered):
        """The sum, written out: upright labels, joint labels of both views, the deepest head's mean over them."""
        net = resnet(0)
        net.module.eval()
        loss = layered(net, mode="better", views=2, alpha=0, joint=2, aggregate=1).eval()
        batch = tiny.batch(tiny.rows("train")[:6])
        seen = []
        for head in loss.heads:
            head.register_forward_hook(lambda _, __, out: seen.append(out[1]))
        total, logs = Lesson(net, [Term(loss)]).eval()(batch, 0.9)
        wide = expanded(batch, 2)
        joint = 2 * wide["labels"] + wide["view"]
        p = net.logits(batch)
        deepest = seen[-1].view(6, 2, 3, 2)
        mean = (deepest[:, 0, :, 0] + deepest[:, 1, :, 1]) / 2
        expected = functional.cross_entropy(p, batch["labels"], reduction="sum") + 9 * functional.kl_div(
            (p / 3).log_softmax(-1), (mean / 3).log_softmax(-1), reduction="sum", log_target=True
        )
        expected = expected + sum(functional.cross_entropy(one, joint, reduction="sum") for one in seen)
        torch.testing.assert_close(total, expected)
        assert float(logs["deep_to_shallow"]) == float(logs["hint"]) == 0

    def test_without_a_past_nothing_is_remembered_and_that_is_said(self, layered):
        loss = layered(resnet(0), mode="better", alpha=0)
        assert loss.memory is None
        assert not list(loss.buffers(recurse=False))
        assert loss.tables == ()
        assert loss.facts == {"self_teacher": None}


@pytest.mark.parametrize("family", ["hf_bert", "bag"])
def test_padding_of_texts_changes_nothing(family, layered):
    net = create(family, {}, LABELS, 0)
    loss = layered(net, hint=1.0).eval()
    ids = torch.randint(1, 900, (3, 6), generator=torch.Generator().manual_seed(0))
    rest = {"labels": torch.tensor([0, 1, 2]), "index": torch.arange(3)}
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest}
    long = {k: functional.pad(v, (0, 3)) if v.dim() == 2 else v for k, v in short.items()}
    one, two = (said(net, loss, batch) for batch in (short, long))
    assert one["joint_labels"] > 0
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
