from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl.errors import Refused
from edgetl.network.edits import Constant, Keep, apply, from_json, to_json
from edgetl.network.network import Network, create

SIZES = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def net() -> Network:
    return create("hf_vit", {**SIZES, "intermediate_size": 6}, ["a", "b"], seed=0)


def gated(net, kept, inputs):
    """Return the answer with the units outside `kept` zeroed at every gate."""
    handles = []
    for group in net.family.units(net.module):
        mask = torch.tensor([u in kept[group.name] for u in range(group.count)]).repeat_interleave(group.width)
        layer = net.at(group.gate)
        handles.append(layer.register_forward_pre_hook(lambda _m, args, mask=mask: (args[0] * mask,)))
    answer = net.logits(inputs)
    for handle in handles:
        handle.remove()
    return answer


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_cut_of_all_groups_equals_its_mask(net, data):
    groups = net.family.units(net.module)
    kept = {g.name: data.draw(st.sets(st.integers(0, g.count - 1)), label=g.name) for g in groups}
    cut = net.edit([g.keep(sorted(kept[g.name])) for g in groups])
    inputs = net.family.example(net.config, 2)
    torch.testing.assert_close(cut.logits(inputs), gated(net.copy(), kept, inputs), rtol=1e-5, atol=1e-6)
    again = create("hf_vit", net.config, net.labels, seed=0).edit(from_json(to_json(cut.edits)))
    assert torch.equal(again.logits(inputs), cut.logits(inputs))


def test_cuts_in_two_rounds_count_what_is_left(net):
    heads = net.family.units(net.module)[0]
    once = net.edit([heads.keep([1, 2, 3])])
    twice = once.edit([once.family.units(once.module)[0].keep([2])])
    assert twice.family.units(twice.module)[0].count == 1
    assert len(twice.edits) == 2
    direct = net.edit([heads.keep([3])])
    inputs = net.family.example(net.config, 1)
    assert torch.equal(direct.logits(inputs), twice.logits(inputs))


def test_an_edit_leaves_the_original_alone_and_keeps_everything_trainable(net):
    before = net.digest
    cut = net.edit([g.keep([0]) for g in net.family.units(net.module)])
    assert net.copy().digest == before
    assert all(p.requires_grad for p in cut.module.parameters())
    assert not any(m.training for m in cut.module.modules())
    cut.logits(net.family.example(net.config, 2)).sum().backward()
    assert all(p.grad is not None for p in cut.module.parameters())


def test_keeping_everything_changes_nothing(net):
    cut = net.edit([g.keep(range(g.count)) for g in net.family.units(net.module)])
    assert all(torch.equal(a, b) for a, b in zip(net.state().values(), cut.state().values(), strict=True))


QKVO = (("layers.0.ffn.up.weight", 0), ("layers.0.ffn.up.bias", 0), ("layers.0.ffn.down.weight", 1))


@pytest.mark.parametrize(
    "edit",
    [
        Keep((("layers.9.ffn.up.weight", 0),), (0,)),
        Keep((("norm.weight", 0),), (0,)),
        Keep(QKVO[:2], (0,)),
        Keep(QKVO, (0, 6)),
        Keep(QKVO, (1, 0)),
        Keep(QKVO, (1, 1)),
        Keep(QKVO, ()),
        Constant("layers.0"),
        Constant("head"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(net, edit):
    with pytest.raises(Refused, match=r"edit|units"):
        net.edit([edit])


def test_half_a_head_is_refused(net):
    heads = net.family.units(net.module)[0]
    with pytest.raises(Refused, match="parts of units"):
        net.edit([Keep(heads.tensors, (0, 1))])
    with pytest.raises(Refused, match="parts of units"):
        net.edit([Keep(heads.tensors, (1, 2, 3, 4))])


def test_a_place_becomes_constant_only_once(net):
    with pytest.raises(Refused):
        net.edit([Constant("layers.0.attn"), Constant("layers.0.attn")])


KEEP = {"edit": "keep", "tensors": [["layers.0.ffn.up.weight", 0]], "indices": [0]}


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        ["keep"],
        [{"edit": "exec", "code": "1"}],
        [{**KEEP, "more": 1}],
        [{"edit": "constant", "place": 3}],
        [{**KEEP, "tensors": [["layers.0.ffn.up.weight", True]]}],
        [{**KEEP, "tensors": [["layers.0.ffn.up.weight", -1]]}],
        [{**KEEP, "tensors": ["ab"]}],
        [{**KEEP, "indices": []}],
        [{**KEEP, "indices": [1.0]}],
        [{**KEEP, "indices": [True]}],
        [{**KEEP, "indices": [-1]}],
        [{**KEEP, "indices": [2, 1]}],
    ],
)
def test_a_forged_edits_list_is_refused(data):
    with pytest.raises(Refused) as caught:
        from_json(data)
    assert caught.value.code == 5


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.last = nn.Conv2d(6, 2, 1)
        self.layer = nn.LayerNorm(6)
        self.table = nn.Embedding(4, 6)


def test_a_keep_resizes_every_kind_of_layer(monkeypatch):
    from edgetl.network.family import Group, Layout

    slots = [("conv.weight", 0), ("conv.bias", 0), ("last.weight", 1), ("layer.weight", 0), ("layer.bias", 0)]
    slots += [(f"norm.{x}", 0) for x in ("weight", "bias", "running_mean", "running_var")]
    slots += [("depth.weight", 0), ("depth.bias", 0), ("table.weight", 1)]
    group = Group("g", "channels", "conv", 0, "last", tuple(slots), 6, 1)

    class Toy:
        name = "toy"
        names = (Layout(tuple((x, x) for x in ("conv", "norm", "depth", "last", "layer", "table"))),)

        def units(self, module):
            return (group,)

        def resized(self, module):
            pass

    module = Sliced().eval()
    apply(module, Toy(), [group.keep([0, 2, 5])])
    out = module.last(module.depth(module.norm(module.conv(torch.ones(1, 3, 9, 9)))))
    assert out.shape == (1, 2, 5, 5)
    assert (module.depth.groups, module.last.in_channels, module.norm.num_features) == (3, 3, 3)
    assert module.layer(torch.ones(1, 3)).shape == module.table(torch.tensor([1])).shape == (1, 3)
