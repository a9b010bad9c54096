"""A family from one recipe: one learngene, a student for every depth, and another depth later without learning it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from edgetl.errors import BadInput
from edgetl.methods.tleg.learngene import HEADER, expand, load
from edgetl.network.network import load as load_network
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from tests.methods.tleg_networks import gene
from tests.stages.conftest import Write

DENSE = {"use": "finetune", "name": "dense", "schedule": {"epochs": 1}}
FAMILY = {"use": "tleg", "depth": [1, 3], "learn": {"epochs": 1}, "schedule": {"epochs": 1}, "init": "secant"}


def test_one_learngene_serves_all_depths_and_later_ones(
    tiny: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = read(tiny(steps=[DENSE, FAMILY]))
    with caplog.at_level(logging.INFO, "edgetl"):
        made = compress(recipe, tmp_path / "run")
    assert set(made) == {"dense", "tleg-1", "tleg-3"}
    assert [load_network(made[f"tleg-{d}"]).config["num_hidden_layers"] for d in (1, 3)] == [1, 3]
    (folder,) = (tmp_path / "run" / "shared").glob("learngene-*")
    assert len([r for r in caplog.records if "R²" in r.message]) == 1
    curves = [folder, tmp_path / "run/steps/02-tleg/tleg-1", tmp_path / "run/steps/02-tleg/tleg-3"]
    assert all((place / "training.json").is_file() for place in curves)

    caplog.clear()
    with caplog.at_level(logging.INFO, "edgetl"):
        compress(recipe, tmp_path / "run")
    assert "running" not in caplog.text

    moved = shutil.copytree(folder, tmp_path / "gene")
    later = [DENSE, {"use": "tleg", "learngene": str(moved), "depth": 5, "schedule": None}]
    with caplog.at_level(logging.INFO, "edgetl"):
        made = compress(read(tiny(steps=later)), tmp_path / "later")
    assert "R²" not in caplog.text
    assert not list((tmp_path / "later" / "shared").glob("learngene-*"))
    assert load_network(made["tleg-5"]).digest == expand(load(moved), 5).digest


def test_a_changed_learngene_makes_its_step_run_again_and_a_missing_one_is_told(tiny: Write, tmp_path: Path) -> None:
    steps = [DENSE, {"use": "tleg", "learngene": str(tmp_path / "gene"), "depth": 2, "schedule": None}]
    digests = []
    for depth in (2, 3):  # other blocks, by which the line goes
        gene(depth=depth).save(tmp_path / "gene")
        student = load_network(compress(read(tiny(steps=steps)), tmp_path / "run")["tleg-2"])
        assert student.labels == tuple("0123456789")  # the learngene has three others
        assert student.facts["head"] == "new"
        digests.append(student.digest)
    assert digests[0] != digests[1]
    shutil.rmtree(tmp_path / "gene")
    with pytest.raises(BadInput, match=HEADER):
        compress(read(tiny(steps=steps)), tmp_path / "run")
