from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetl import comparison, store
from edgetl.errors import Refused
from edgetl.explain import explained
from edgetl.explain.causes import Cause
from edgetl.explain.explained import Explained, Operator, Part
from edgetl.measure import measurement
from edgetl.page import times
from edgetl.page.facts import Facts
from edgetl.recipe.plan import read_plan

PLAN = {
    "schema_version": 1, "name": "demo", "reference": "dense", "students": ["optin-0.5"],
    "targets": [{"use": "onnx", "precision": "fp32"}], "gates": {}, "budgets": {}, "steps": {},
}  # fmt: skip
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def facts(run: Path, tmp_path: Path) -> Facts:
    copy = tmp_path / "demo"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("measurements", "report.*"))
    (copy / "plan.json").write_text(json.dumps(PLAN))
    return Facts(copy, read_plan(copy), comparison.rows(copy, read_plan(copy)), ["local"], ())


def explain(facts: Facts, number: int, module: str = "layers.1.ffn.down") -> Explained:
    """Keep an explanation of one row: 75 % of the time in one module."""
    sha256 = measurement.identity(facts.rows[number].bundle.sums)
    node = f"{module}/MatMul"
    operator = Operator(
        name=node, op="MatMul", module=module, ms=0.3, share=0.75, provider=explained.HOST, dtype="float"
    )
    modules = [("patch", 0.04, 1), ("layers.1", 0.06, 5), (module, 0.3, 1)]
    one = Explained(
        bundle_sha256=sha256, name=facts.rows[number].name, device="local", runtime="", provider=explained.HOST,
        calls=20, call_ms=0.4, kernels_ms=0.4, empty_call_ms=0.1, operators=[operator], nodes=7,
        modules=[Part(module=m, ms=ms, share=ms / 0.4, nodes=n) for m, ms, n in modules],
        causes=[Cause(kind="overhead", share=0.25, says="25 % of a call is its own", fix="run several samples")],
    )  # fmt: skip
    path = explained.path(facts.run / "measurements", "local", one.name, sha256)
    store.write_json(path, one.model_dump(mode="json"))
    return one


def test_without_an_explanation_the_page_says_how_to_get_one(facts: Facts) -> None:
    assert "not measured" in times.layers(facts)
    assert "edgetl profile --explain" in times.layers(facts)


def test_the_page_shows_modules_causes_and_operators(facts: Facts) -> None:
    explain(facts, 1)
    shown = times.layers(facts)
    for text in ("optin-0.5", "ffn.down", "75.0 %", "90.0 %", "Fix: run several samples", "6 more are faster"):
        assert text in shown
    assert "dense" not in shown, "only what was explained is shown"


def test_names_from_a_file_are_text(facts: Facts) -> None:
    explain(facts, 0, HOSTILE)
    shown = times.layers(facts)
    assert HOSTILE not in shown
    assert "&lt;script&gt;" in shown


def test_a_damaged_explanation_is_refused(facts: Facts) -> None:
    explain(facts, 0)
    [path] = (facts.run / "measurements").glob("*/explain/*.json")
    path.write_text(path.read_text().replace('"calls"', '"callz"'))
    with pytest.raises(Refused, match="calls"):
        times.layers(facts)


def test_an_explanation_is_no_measurement(facts: Facts) -> None:
    explain(facts, 0)
    again = comparison.rows(facts.run, facts.plan)
    assert all(not row.measured for row in again)


def test_the_text_for_the_terminal_holds_the_fix(facts: Facts) -> None:
    text = explained.text(explain(facts, 0))
    assert "25 % of that the runtime's own" in text
    assert "  fix: run several samples" in text
