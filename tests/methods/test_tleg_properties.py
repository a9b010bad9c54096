"""What any learngene must satisfy: formula, identities, gradients, sizes, fits, losses."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgetl import plugins
from edgetl.errors import Refused
from edgetl.losses.logits import LiveDivergence, softened
from edgetl.methods.tleg import Tleg
from edgetl.methods.tleg.auxiliary import Auxiliary, Matching, Recombined, spread
from edgetl.methods.tleg.expansion import Sharing, stages
from edgetl.methods.tleg.learn import chances, few
from edgetl.methods.tleg.learngene import DEPTH, Learngene, by_kind, expand, outer
from edgetl.methods.tleg.start import explained, interpolated, least_squares, repeated, rescaled, started
from edgetl.network.names import live
from edgetl.network.network import check_plain, save
from edgetl.train.course import Course, Live, terms
from edgetl.train.lesson import Lesson, Term
from edgetl.train.taps import Features
from tests.methods.tleg_networks import KINDS, LABELS, LINE, SHARINGS, backbone, gene

DEPTHS = (1, 2, 3, 6, 12, 24)


def sets(found: Learngene) -> dict[str, list[torch.Tensor]]:
    return by_kind(found.tensors)


@pytest.mark.parametrize("depth", DEPTHS)
def test_block_i_is_the_first_set_plus_i_over_l_times_the_second(depth):
    found = gene()
    state = expand(found, depth).state()
    assert sorted({int(k.split(".")[1]) for k in state if k.startswith("layers.")}) == list(range(depth))
    for kind, (constant, slope) in sets(found).items():
        for i in range(depth):
            assert torch.equal(state[f"layers.{i}.{kind}"], constant + (i / depth) * slope)
        assert torch.equal(state[f"layers.0.{kind}"], constant)


@given(st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_coefficients_start_at_zero_rise_evenly_and_never_reach_one(depth):
    ones, positions = LINE.coefficients(depth).double().T
    assert torch.equal(ones, torch.ones(depth, dtype=torch.float64))
    torch.testing.assert_close(positions, torch.arange(depth) / depth, rtol=0, atol=1e-7, check_dtype=False)
    assert positions[-1] < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: s.form)
def test_the_auxiliary_network_answers_as_its_expansion_does(kind, sharing):
    found = gene(kind, sharing)
    for depth in (12, 5):
        auxiliary = Auxiliary(found, {depth: 1.0}).eval()
        plain = expand(found, depth)
        inputs = plain.family.example(plain.config, 4)
        with torch.no_grad():
            ours, theirs = auxiliary.network().logits(inputs), plain.logits(inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert theirs.std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_expansion_is_plain(kind, tmp_path):
    net = expand(gene(kind), 5)
    save(net, tmp_path)
    check_plain(net, tmp_path)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_a_depth_that_divides_another_takes_every_so_manieth_of_its_blocks(depth):
    few_blocks, many = expand(gene(), depth).state(), expand(gene(), 12).state()
    for kind in sets(gene()):
        for i in range(depth):
            assert torch.equal(few_blocks[f"layers.{i}.{kind}"], many[f"layers.{i * 12 // depth}.{kind}"])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_sets_are_sums_of_those_of_the_blocks(kind):
    found, depth = gene(kind), 4
    auxiliary, plain = Auxiliary(found, {depth: 1.0}).train(), expand(found, depth)
    inputs, labels = plain.family.example(plain.config, 6), torch.arange(6) % 3
    for logits in (auxiliary.network().logits(inputs), plain.logits(inputs)):
        functional.cross_entropy(logits, labels).backward()
    ours = {k: p.grad for k, p in by_name(auxiliary.sets, found).items()}
    theirs = {k: p.grad for k, p in by_name(plain.module, found).items()}
    assert {name for name, p in auxiliary.named_parameters() if p.grad is None} == set()
    for part, (first, second) in by_kind({k: g for k, g in ours.items() if g is not None}).items():
        blocks = torch.stack([theirs[f"layers.{i}.{part}"] for i in range(depth)]).double()
        positions = (torch.arange(depth) / depth).double()
        close(first, blocks.sum(0))
        close(second, torch.tensordot(positions, blocks, dims=1))
    for name in outer(found.tensors):
        close(ours[name], theirs[name])


def by_name(module: torch.nn.Module, found: Learngene) -> dict[str, torch.nn.Parameter]:
    """The parameters by canonical name."""
    names = live(found.family, module)
    return {k: getattr(*names.owner(k)) for k in names.state()}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-7)


def test_a_teacher_stays_as_it_was(tiny):
    teacher, found = backbone(depth=3), gene(depth=3)
    before = teacher.digest
    auxiliary = Auxiliary(found, {2: 1.0}).train()
    losses = [LiveDivergence(Live(teacher, ()), 1.0), Matching(auxiliary.passage, teacher)]
    lesson = Lesson(auxiliary.network(), [Term(loss) for loss in losses])
    optimizer = torch.optim.SGD(lesson.parameters(), lr=0.1)
    loss, logs = lesson(tiny.batch(tiny.rows("train")[:8]), 0.0)
    loss.backward()
    optimizer.step()
    assert logs["blocks"] > 0
    assert all(p.grad is None for p in teacher.module.parameters())
    assert replace(teacher).digest == before
    assert {n.removeprefix("network.") for n, _ in lesson.named_parameters()} == {
        n for n, _ in auxiliary.named_parameters()
    }


SIZES = {"Ti": (192, 3, 185_664, 193_000, 1_075_392), "S": (384, 6, 371_328, 385_000, 3_920_256)}
SIZES["B"] = (768, 12, 742_656, 769_000, 14_918_400)
"""Width, heads, and the paper's numbers outside of the blocks, in the head, and of a learngene without head."""


def counted(width: int, heads: int, depth: int) -> tuple[int, int]:
    """How many numbers a ViT has in all but its head, and in its head."""
    family = plugins.find("families", "hf_vit")
    sizes = {"image_size": 224, "patch_size": 16, "hidden_size": width, "num_attention_heads": heads}
    config = family.config({**sizes, "intermediate_size": 4 * width, DEPTH: depth}, 1000)
    with torch.device("meta"):
        state = family.build(config).state_dict()
    head = sum(t.numel() for k, t in state.items() if k.startswith("classifier"))
    return sum(t.numel() for t in state.values()) - head, head


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers_but_for_the_class_token(name):
    width, heads, around, head, stored = SIZES[name]
    token = 2 * width  # the token itself and its position, where the paper takes the mean of the patches
    body, classifier = counted(width, heads, LINE.sets)
    assert body - token == stored
    assert classifier == head
    block = counted(width, heads, 1)[0] - token - around
    assert body - token == 2 * block + around
    assert counted(width, heads, 9)[0] - token == 9 * block + around


def test_five_students_are_nineteen_times_their_learngene():
    token = 2 * 768
    students = sum(counted(768, 12, depth)[0] - token for depth in (4, 6, 8, 10, 12))
    assert round(students / (counted(768, 12, 2)[0] - token), 2) == 19.25


def test_the_depth_that_a_learngene_is_learnt_from_does_not_change_its_size(tmp_path):
    for depth in (3, 12):
        gene(depth=depth).save(tmp_path / str(depth))
    three, twelve = ((tmp_path / d / "learngene.safetensors").stat().st_size for d in ("3", "12"))
    assert three == twelve
    assert gene(depth=3).size == gene(depth=12).size


def test_blocks_of_an_expansion_are_free_of_each_other(tiny):
    net = expand(gene(depth=3), 3)
    weights = [net.at(f"layers.{i}.ffn.up").weight for i in range(3)]
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 3
    assert (weights[2] - 2 * weights[1] + weights[0]).abs().max() < 1e-6
    optimizer = torch.optim.SGD(net.module.parameters(), lr=0.1)
    batch = tiny.batch(tiny.rows("train")[:8])
    functional.cross_entropy(net.logits(batch), batch["labels"]).backward()
    optimizer.step()
    assert (weights[2] - 2 * weights[1] + weights[0]).abs().max() > 1e-5


def test_least_squares_finds_the_sets_that_blocks_were_made_of():
    found = gene()
    for kind, expected in sets(found).items():
        blocks = torch.stack([found.blocks(12)[f"layers.{i}.{kind}"] for i in range(12)])
        torch.testing.assert_close(least_squares(blocks, LINE), torch.stack(expected), rtol=1e-4, atol=1e-5)


@given(st.integers(2, 16), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_least_squares_fit_leaves_nothing_that_a_line_could_explain(depth, seed):
    blocks = torch.randn(depth, 4, 5, generator=torch.Generator().manual_seed(seed)).double()
    constant, slope = least_squares(blocks, LINE)
    t = (torch.arange(depth) / depth).double()
    mean, spread_ = (depth - 1) / (2 * depth), (depth**2 - 1) / (12 * depth)
    near = {"rtol": 1e-5, "atol": 1e-5}  # the coefficients are float32, as an expansion's are
    torch.testing.assert_close(slope, torch.tensordot(t - mean, blocks, dims=1) / spread_, **near)
    torch.testing.assert_close(constant, blocks.mean(0) - mean * slope, **near)
    left = blocks - (constant + t[:, None, None] * slope)
    assert left.sum(0).abs().max() < 1e-5
    assert torch.tensordot(t, left, dims=1).abs().max() < 1e-5
    assert left.square().sum() <= (blocks - blocks.mean(0)).square().sum() + 1e-6


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: s.form)
def test_unrelated_blocks_are_explained_as_far_as_chance_goes(sharing):
    net = backbone()
    with torch.no_grad():
        for name, parameter in by_name(net.module, gene()).items():
            if name.startswith("layers."):
                parameter.normal_()
    assert explained(net, sharing) == pytest.approx(sharing.sets / 12, abs=0.02)
    assert explained(expand(gene(), 12), LINE) == pytest.approx(1, abs=1e-6)


def test_a_divergence_is_nought_between_equals_and_blind_to_a_constant():
    torch.manual_seed(0)
    teacher, student = torch.randn(8, 5), torch.randn(8, 5)
    assert abs(softened(teacher, teacher, 2.0)) < 1e-6
    moved = softened(teacher + 3, student - 7, 2.0)
    torch.testing.assert_close(moved, softened(teacher, student, 2.0), rtol=1e-5, atol=1e-5)
    twice = softened(teacher.repeat(2, 1), student.repeat(2, 1), 2.0) / 16
    torch.testing.assert_close(twice, softened(teacher, student, 2.0) / 8)  # the mean over a batch
    student.requires_grad_()
    (grad,) = torch.autograd.grad(softened(teacher, student, 1e3), student)
    centred = student - student.mean(1, keepdim=True) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(grad, centred.detach() / 5, rtol=1e-2, atol=1e-4)  # T^2 keeps it of this size


def test_labels_do_not_count_where_the_teacher_has_all_the_weight(tiny):
    (only,) = Tleg(use="tleg", mode="paper")._first
    assert (only.use, only.temperature, only.live) == ("logits", 1.0, True)
    batch = tiny.batch(tiny.rows("train")[:8])
    grads = []
    for labels in (batch["labels"], (batch["labels"] + 1) % 3):
        auxiliary = Auxiliary(gene(depth=2), {2: 1.0})
        course = Course(auxiliary.network(), backbone(depth=2, seed=1), None, 1)
        loss, _ = Lesson(auxiliary.network(), terms([only], course))({**batch, "labels": labels}, 0.0)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in auxiliary.parameters() if p.grad is not None]))
    assert torch.equal(*grads)
    assert grads[0].norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_expanding_twice_gives_the_same_and_nothing_is_left_out(kind):
    found = gene(kind)
    assert expand(found, 5).digest == expand(found, 5).digest
    before = expand(found, 4).state()
    for name in [n for n in found.tensors if n.startswith("layers.1.")]:
        changed = replace(found, tensors={**found.tensors, name: found.tensors[name] + 1})
        after = expand(changed, 4).state()
        part = name.removeprefix("layers.1.")
        differ = {k for k in after if not torch.equal(before[k], after[k])}
        assert differ == {f"layers.{i}.{part}" for i in (1, 2, 3)}


def test_only_some_of_a_network_is_no_learngene():
    found = gene()
    part = {k: v for k, v in found.tensors.items() if k != "norm.weight"}
    with pytest.raises(Refused, match=r"norm\.weight"):
        expand(replace(found, tensors=part), 3)


def test_stages_repeat_as_the_released_code_has_them():
    assert stages(5, 12) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert stages(5, 5) == [0, 1, 2, 3, 4]
    assert stages(5, 3) == [0, 2, 4]
    assert stages(5, 1) == [0]


@given(st.integers(1, 8), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_stages_never_go_back_and_use_all_blocks_that_fit(count, depth):
    found = stages(count, depth)
    assert len(found) == depth
    assert found == sorted(found)
    assert len(set(found)) == min(count, depth)


def test_a_polynomial_of_order_one_is_the_line():
    assert torch.equal(Sharing("polynomial", 2).coefficients(9), LINE.coefficients(9))
    x = np.arange(7) / 7
    chebyshev = np.stack([np.ones(7), x, 2 * x**2 - 1, 4 * x**3 - 3 * x], 1)
    np.testing.assert_allclose(Sharing("polynomial", 4).coefficients(7), chebyshev, atol=1e-6)


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: s.form)
def test_starts_give_the_blocks_they_are_made_of(sharing):
    blocks = torch.randn(12, 6, 6, generator=torch.Generator().manual_seed(0))
    table = sharing.coefficients(12)

    def expanded(made: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(table, made, dims=1)

    through = expanded(interpolated(blocks, sharing))
    same = (through - blocks).flatten(1).abs().amax(1) < 1e-4
    assert int(same.sum()) == sharing.sets
    assert sharing.form == "stagewise" or (same[0] and same[-1])
    torch.testing.assert_close(expanded(repeated(blocks, sharing)), blocks[6].expand(12, 6, 6))
    norms = expanded(rescaled(blocks, sharing)).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms.mean(), blocks.flatten(1).norm(dim=1).mean())


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: s.form)
def test_random_blocks_have_norms_of_one(sharing):
    state = expand(started(backbone(), sharing, "random", 3), 6).state()
    for i in range(6):
        assert torch.equal(state[f"layers.{i}.norm1.weight"], torch.ones(16))
        assert not state[f"layers.{i}.attn.q.bias"].any()
        assert 0.005 < state[f"layers.{i}.ffn.up.weight"].std() < 0.1


def test_coefficients_of_a_depth_are_all_that_it_trains(tiny):
    found = gene(depth=4)
    one = Recombined(found, 3)
    trained = {n for n, p in one.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == {"tables"}
    assert len(trained) == len(sets(found))
    batch = tiny.batch(tiny.rows("train")[:8])
    with torch.no_grad():
        before = one.network().logits(batch)
        torch.testing.assert_close(before, expand(found, 3).logits(batch), rtol=1e-5, atol=1e-5)
        for table in one.tables.values():
            table.add_(0.1 * torch.randn_like(table))
        after = one.eval().network().logits(batch)
        plain = expand(found, 3, one.found()).logits(batch)
    torch.testing.assert_close(after, plain, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_blocks_are_compared_at_the_same_share_of_the_depth():
    assert spread(12, 3) == [3, 7, 11]
    assert spread(3, 3) == [0, 1, 2]
    teacher, passage = backbone(depth=4), Auxiliary(gene(depth=4), {2: 1.0}).passage
    loss = Matching(passage, teacher)
    batch = {**teacher.family.example(teacher.config, 4), "index": torch.arange(4)}
    seen = Live(teacher, loss._places).features(batch)
    passage.outputs = (seen["layers.1"], seen["layers.3"])
    total, _ = loss(torch.zeros(4, 3), Features(), batch, 0.0)
    assert total == 0
    passage.outputs = (seen["layers.1"], torch.zeros_like(seen["layers.3"]))
    total, _ = loss(torch.zeros(4, 3), Features(), batch, 0.0)
    torch.testing.assert_close(total, torch.tensor(2.0))  # half of the blocks are off by all there is, 4 samples


def test_padding_of_texts_is_not_compared():
    teacher = backbone("mean, norm behind", 2)
    auxiliary = Auxiliary(gene("mean, norm behind", depth=2), {2: 1.0}).train()
    batch = {**teacher.family.example(teacher.config, 4), "index": torch.arange(4)}
    auxiliary.network().logits(batch)
    loss = Matching(auxiliary.passage, teacher)
    before, _ = loss(torch.zeros(4, 3), Features(), batch, 0.0)
    hidden = (1 - batch["attention_mask"])[..., None].bool()
    assert hidden.any()
    auxiliary.passage.outputs = tuple(o.masked_fill(hidden, 1e3) for o in auxiliary.passage.outputs)
    after, _ = loss(torch.zeros(4, 3), Features(), batch, 0.0)
    assert torch.equal(before, after)


def test_both_ends_are_drawn_most(tiny):
    assert chances([12, 3]) == {3: 0.2, 12: 0.4}
    assert chances([6]) == {6: 1.0}
    assert chances([3, 6, 9, 12]) == {3: 0.2, 6: 0.2, 9: 0.2, 12: 0.4}
    auxiliary = Auxiliary(gene(depth=4), chances([1, 2, 3, 4])).train()
    batch = tiny.batch(tiny.rows("train")[:2])
    torch.manual_seed(0)
    depths = []
    for _ in range(60):
        auxiliary.network().logits(batch)
        depths.append(len(auxiliary.passage.outputs))
    assert set(depths) == {1, 2, 3, 4}
    assert depths.count(4) > depths.count(2)
    auxiliary.eval().network().logits(batch)
    assert len(auxiliary.passage.outputs) == 4


def test_a_trial_sees_few_samples_and_no_validation(tiny):
    data, epochs = few(tiny, 10, 16, 0)
    assert len(data.rows("train")) == 80
    assert epochs == 2
    assert set(data.rows("train")) <= set(tiny.rows("train"))
    assert not len(data.rows("validation"))
    whole, epochs = few(tiny, 1000, 16, 0)
    assert len(whole.rows("train")) == len(tiny.rows("train"))
    assert epochs * 9 == pytest.approx(1000, rel=0.01)


def test_an_auxiliary_network_can_be_copied():
    """As a moving average of its weights is made."""
    auxiliary = Auxiliary(gene(depth=3), {3: 1.0}).eval()
    again = copy.deepcopy(auxiliary)
    inputs = again.network().family.example(gene(depth=3).config, 2)
    with torch.no_grad():
        assert torch.equal(auxiliary.network().logits(inputs), again.network().logits(inputs))
    assert auxiliary.network().labels == LABELS
