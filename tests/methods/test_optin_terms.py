"""The two terms of the score, the draw of positions and the mask of a unit, on bare tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgetl.methods.optin.score import silent
from edgetl.methods.optin.terms import Draw, divergence, manifold_distance
from edgetl.network.family import Group

seeds = st.integers(0, 2**32 - 1)


def unit_rows(seed: int, k: int = 9, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(k, width, dtype=torch.float64, generator=generator), dim=-1)


def rotation(seed: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q


@given(seeds, st.integers(1, 12), st.integers(1, 8))
def test_the_manifold_term_is_the_squared_difference_of_the_gram_matrices(seed, k, width):
    a, b = unit_rows(seed, k, width), unit_rows(seed ^ 1, k, width)
    expected = float((a @ a.T - b @ b.T).square().sum())
    assert manifold_distance(a, b) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(seeds)
def test_the_manifold_term_is_symmetric_and_blind_to_rotations(seed):
    a, b = unit_rows(seed), unit_rows(seed ^ 1)
    turned = rotation(seed)
    assert manifold_distance(b, a) == pytest.approx(manifold_distance(a, b), rel=1e-10)
    assert manifold_distance(a @ turned, b @ turned) == pytest.approx(manifold_distance(a, b), rel=1e-10)
    assert manifold_distance(a @ turned, b) == pytest.approx(manifold_distance(a, b), rel=1e-9)
    assert manifold_distance(a @ turned, a) == pytest.approx(0, abs=1e-12)


@given(seeds)
def test_equal_points_are_at_no_distance_and_small_changes_are_not_lost_in_float32(seed):
    a = unit_rows(seed, 200, 16)
    b = functional.normalize(a + 1e-5 * unit_rows(seed ^ 1, 200, 16), dim=-1)
    assert manifold_distance(a.float(), a.float()) == 0
    small, exact = a.float(), float((a @ a.T - b @ b.T).square().sum())
    assert manifold_distance(b.float(), small) == pytest.approx(exact, rel=0.05)


def test_a_value_that_is_not_finite_stays_one():
    a = torch.ones(2, 2)
    assert np.isnan(manifold_distance(a * torch.nan, a))
    assert np.isnan(divergence(a.double(), a.double() * torch.nan))


def test_the_output_term_is_the_divergence_from_the_dense_answer_summed_over_samples():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64)
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence(p.log(), q.log()) == pytest.approx(expected)
    assert divergence(p.log(), p.log()) == 0


@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 30))
def test_positions_are_drawn_once_each_from_the_valid_ones(seed, lengths, k):
    valid = [torch.arange(n) * 2 + 100 * i for i, n in enumerate(lengths)]
    drawn = Draw(k, seed).rows(valid)
    assert sum(len(d) for d in drawn) == min(k, sum(lengths))
    for d, v in zip(drawn, valid, strict=True):
        assert set(d.tolist()) <= set(v.tolist())
        assert len(set(d.tolist())) == len(d)
    assert all(torch.equal(a, b) for a, b in zip(drawn, Draw(k, seed).rows(valid), strict=True))


def test_all_positions_are_taken_where_there_are_not_more_whatever_the_seed():
    valid = [torch.tensor([0, 3]), torch.tensor([1])]
    for seed in (0, 1):
        assert [d.tolist() for d in Draw(3, seed).rows(valid)] == [[0, 3], [1]]


def test_a_silent_unit_is_a_zero_slice_and_speaks_again_after():
    gate = nn.Linear(6, 6)
    group = Group("heads", "heads", "attn", 0, "attn.o", (), 3, 2)
    x = torch.randn(2, 4, 6)
    zeroed = x.clone()
    zeroed[..., 2:4] = 0
    dense = gate(x)
    with silent(gate, group, 1):
        assert torch.equal(gate(x), gate.forward(zeroed))
    assert torch.equal(gate(x), dense)
