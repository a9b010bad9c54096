"""What `methods show` says was measured is what the benchmarks' results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl import listing, plugins

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
METHODS = [name for name in plugins.names("methods") if plugins.find("methods", name).measured]


@pytest.mark.parametrize("name", METHODS)
def test_every_figure_stands_in_the_results_of_its_benchmark(name):
    step = plugins.find("methods", name)
    for field, every in step.measured.items():
        assert field in step.model_fields
        for one in every:
            targets = json.loads((RESULTS / f"{one.benchmark}.json").read_text("utf-8"))["targets"]
            found = next(t for t in targets if t["name"] == one.target)
            assert (one.value, one.low, one.high) == (found["value"], found["low"], found["high"])


def test_methods_without_figures_have_none_to_show():
    assert listing.measured("ps_kd") == []
    assert listing.measured("lora") == []
