"""The learning curves of a run, as the page draws them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.errors import Refused
from edgetl.page import learning
from edgetl.page.facts import Facts
from edgetl.page.markup import tag
from edgetl.types import Json

EPOCHS = [
    {"loss": 2.0, "labels": 1.5, "hint": 0.5, "validation_loss": 1.8, "validation_accuracy": 0.5},
    {"loss": 1.0, "labels": 0.8, "hint": 0.2, "validation_loss": 1.2, "validation_accuracy": 0.75},
]
FOUND = {"self_teacher": "table", "teachers": [{"teacher": "<b>", "similarity": 0.25, "weight": 1.0}]}


def facts(run: Path, told: Json = None) -> Facts:
    plan = {"steps": {"student": ["00-source/all", "01-dense/all"], "other": ["00-source/all", "01-dense/all"]}}
    if told is not None:
        (run / "steps" / "01-dense" / "all").mkdir(parents=True)
        (run / "steps" / "01-dense" / "all" / "training.json").write_text(json.dumps(told))
    return Facts(run, plan, (), (None,), ())


def test_each_step_that_trained_has_its_losses_and_its_accuracy(tmp_path):
    seen = facts(tmp_path, {"schema_version": 1, "epochs": EPOCHS, "facts": FOUND})
    figures = learning.figures(seen)
    assert list(figures) == ["chart-learning-01-dense-all-loss", "chart-learning-01-dense-all-accuracy"]
    loss, accuracy = figures.values()
    assert {trace["name"]: trace["y"] for trace in loss["data"]} == {
        "loss": [2.0, 1.0],
        "validation loss": [1.8, 1.2],
        "labels": [1.5, 0.8],
        "hint": [0.5, 0.2],
    }
    assert [trace["x"] for trace in loss["data"]] == [[1, 2]] * 4
    assert [trace["y"] for trace in accuracy["data"]] == [[50.0, 75.0]]
    text = learning.section(seen, {key: tag("div", key) for key in figures})
    for words in ("dense on all: 2 epochs", "self teacher", "table", "similarity 0.25", "&lt;b&gt;", *figures):
        assert words in text
    assert "<b>" not in text


def test_a_run_that_did_not_train_says_so(tmp_path):
    assert learning.figures(facts(tmp_path)) == {}
    assert "No step" in learning.section(facts(tmp_path), {})


@pytest.mark.parametrize("told", [[], {"epochs": 3}, {"epochs": [1]}, {"epochs": [{"loss": "<b>"}]}])
def test_a_log_that_is_none_is_refused(tmp_path, told):
    with pytest.raises(Refused, match=r"training\.json") as caught:
        learning.figures(facts(tmp_path, told))
    assert caught.value.code == 5
