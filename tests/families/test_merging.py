"""Bipartite soft matching against loops, and in the file that leaves."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgetl.families._merging import GRID, Tokens, match, merged


def by_loops(metric: Tensor, values: Tensor, r: int) -> Tensor:
    """Merge the tokens of one sample: the r most alike pairs, the first of equals, what stays in its order."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    one, other = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
    pairs = []
    for i in one:
        alike = [round(float(unit[i] @ unit[j]) * GRID) for j in other]
        pairs.append((-max(alike), i, other[alike.index(max(alike))]))
    gone = {i: j for _, i, j in sorted(pairs)[:r]}
    sums = {j: values[j].clone() for j in other}
    for i, j in gone.items():
        sums[j] += values[i]
    return torch.stack([values[i] for i in one if i not in gone] + list(sums.values()))


def repeated(seed: int, tokens: int, kinds: int) -> Tensor:
    """Return the (2, tokens, 3) metric of tokens of which many are equal, in whole numbers."""
    random = np.random.default_rng(seed)
    return torch.tensor(random.integers(1, 9, (kinds, 3))[random.integers(0, kinds, (2, tokens))], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 15), st.integers(1, 15), st.integers(0, 99), st.data())
def test_the_pairs_are_those_that_loops_find(tokens, kinds, seed, data):
    r = data.draw(st.integers(1, tokens // 2))
    metric = repeated(seed, tokens, kinds)
    values = torch.randn(2, tokens, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([by_loops(m, v, r) for m, v in zip(metric, values, strict=True)])
    torch.testing.assert_close(merged(values, match(metric, r)), expected, rtol=1e-12, atol=1e-12)


class Merge(nn.Module):
    def forward(self, metric: Tensor, values: Tensor) -> Tensor:
        return merged(values, match(metric, 4))


def test_equals_are_told_apart_alike_in_torch_and_onnx_runtime(tmp_path):
    values = torch.arange(17.0).expand(2, 17)[..., None]
    shapes = ({0: torch.export.Dim("batch", min=1, max=2**20)},) * 2
    torch.onnx.export(
        Merge().eval(), (repeated(0, 17, 3).float(), values.clone()), tmp_path / "m.onnx", dynamo=True,
        opset_version=20, input_names=["metric", "values"], output_names=["merged"], dynamic_shapes=shapes,
        verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for seed in range(200):
        metric = repeated(seed, 17, 1 + seed % 6).float()
        found = session.run(None, {"metric": metric.numpy(), "values": values.numpy()})[0]
        assert np.array_equal(found, Merge()(metric, values).numpy())


@pytest.fixture
def twins():
    """A network with large weights, no positions, and pictures of four patches that stand four in a row."""
    from edgetl.network.network import create

    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 3}
    net = create("hf_vit", {**sizes, "intermediate_size": 12}, ["a", "b"], seed=0)
    net.module.double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        net.state()["positions"].zero_()
    kinds = torch.randn(2, 4, 1, 2, 2, generator=draw, dtype=torch.float64).repeat_interleave(4, dim=1)
    pixels = kinds.reshape(2, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(2, 1, 8, 8)
    return net, {"pixel_values": pixels}


def test_merging_twins_changes_no_answer(twins):
    from edgetl.network.edits import MergeTokens

    net, inputs = twins
    for edits in ([MergeTokens(0, 5)], [MergeTokens(0, 8), MergeTokens(1, 4)]):
        merging = net.edit(edits)
        torch.testing.assert_close(merging.logits(inputs), net.logits(inputs), rtol=1e-9, atol=1e-10)


def test_the_class_token_stays_first_and_alone_and_no_patch_is_lost(twins):
    from edgetl.network.edits import MergeTokens

    net, inputs = twins
    merging = net.edit([MergeTokens(0, 7), MergeTokens(1, 4)])
    heard: list[Tokens] = []
    for path in ("layers.0", "layers.1"):
        merging.at(path).register_forward_hook(lambda _m, _i, out: heard.append(out))
    merging.logits(inputs)
    assert [h.size.shape[1] for h in heard] == [10, 6]
    for _, size in heard:
        assert (size[:, 0] == 1).all()
        torch.testing.assert_close(size.sum(1), torch.full_like(size.sum(1), 17))
