"""What the shipped recipes ask for: their families in every precision that they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetl import shipped
from edgetl.network.to_onnx import to_onnx
from edgetl.recipe.load import load
from edgetl.recipe.schema import Material
from edgetl.targets.onnx import Onnx
from edgetl.types import Json
from tests.contract.test_families import lively, network


def asked() -> list[tuple[str, str]]:
    """The family of every recipe's students with each precision that is lower than fp32."""
    found = set()
    for file in shipped.folder("recipes").glob("*.yaml"):
        recipe = load(file)
        students = [step["student"] for step in recipe["steps"] if "student" in step] or [recipe["model"]]
        found |= {(one["family"], target.get("precision", "fp32")) for one in students for target in recipe["targets"]}
    return sorted((family, precision) for family, precision in found if precision not in ("fp32", "auto"))


def answers(file: Path, feeds: tuple[dict[str, NDArray[Json]], ...]) -> NDArray[np.float32]:
    session = Onnx.open(file, {}, 1)
    found = np.concatenate([session.run(feed)["logits"] for feed in feeds])
    session.close()
    return found


def test_recipes_ask_for_lower_precisions() -> None:
    assert {precision for _, precision in asked()} >= {"int8", "int8_dynamic"}


@pytest.mark.parametrize(("family", "precision"), asked())
def test_a_shipped_family_answers_in_a_precision_that_a_recipe_names(
    family: str, precision: str, tmp_path: Path
) -> None:
    net = lively(network(family).copy())
    to_onnx(net, tmp_path / "base.onnx")
    torch.manual_seed(0)
    examples = [net.family.example(net.config, 8) for _ in range(4)]
    feeds = tuple({name: value.numpy() for name, value in one.items()} for one in examples)
    (tmp_path / "out").mkdir()
    name = Onnx(precision=precision).lower(tmp_path / "base.onnx", tmp_path / "out", Material(feeds))  # type: ignore[arg-type]
    wanted, got = answers(tmp_path / "base.onnx", feeds), answers(tmp_path / "out" / name, feeds)
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0))
    assert 0 < error < 0.25
