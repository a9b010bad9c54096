"""How each step learnt: its losses and its accuracy on validation, epoch by epoch. [no torch]"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgetl import store
from edgetl.errors import Refused
from edgetl.page import charts, markup
from edgetl.page.facts import Facts
from edgetl.page.markup import Markup
from edgetl.types import Json

FILE = "training.json"
LOOKS = ("var(--accent)", "var(--warm)", "var(--grey)", "var(--text)")

RATES = {"validation_accuracy": "validation accuracy"}
FIRST = ("loss", "validation_loss")
"""Lines in front: what is trained on, and the same of samples that are not."""


@dataclass(frozen=True)
class Training:
    """What one step logged."""

    path: str  # "01-dense/all"
    epochs: Sequence[Mapping[str, float]]
    facts: Mapping[str, Json]

    @property
    def key(self) -> str:
        """Return what names its charts."""
        return f"chart-learning-{self.path.replace('/', '-')}"

    @property
    def title(self) -> str:
        """Return step and branch."""
        step, _, branch = self.path.partition("/")
        return f"{step.partition('-')[2]} on {branch}"


def trainings(facts: Facts) -> list[Training]:
    """Return what every step that trained has logged, in the order of the steps.

    Raises:
        Refused: a file is damaged.

    """
    each = dict.fromkeys(path for folders in facts.plan["steps"].values() for path in folders)
    return list(_read(facts, sorted(each, key=lambda path: path.partition("-")[0])))


def figures(facts: Facts) -> dict[str, dict[str, Json]]:
    """Return two charts of every step that trained, by the key of their place: losses and accuracy."""
    found: dict[str, dict[str, Json]] = {}
    for one in trainings(facts):
        names = dict.fromkeys(name for epoch in one.epochs for name in epoch)
        terms = [n for n in names if n not in (*FIRST, *RATES)]
        losses = [*(n for n in FIRST if n in names), *(terms if len(terms) > 1 else [])]  # one term is the loss itself
        found[f"{one.key}-loss"] = _lines(one, losses[: len(LOOKS)], "loss per sample", 1)
        found[f"{one.key}-accuracy"] = _lines(one, [n for n in RATES if n in names], "accuracy on validation, %", 100)
    return found


def section(facts: Facts, chart: Mapping[str, Markup]) -> Markup:
    """Return the charts of every step, given by their keys, with a table of the last epoch."""
    shown = trainings(facts)
    if not shown:
        return markup.tag("p", "No step of this run trained, or its log is not in the folder.")
    note = (
        "Every epoch's mean over the training samples, as augmented, and over the validation part as it is. The part "
        "is what training is watched on; accuracy in the tables above is of the exported files on the test part."
    )
    parts = [markup.tag("p", note)]
    for one in shown:
        pair = markup.tag("div", chart[f"{one.key}-loss"], chart[f"{one.key}-accuracy"], class_="pair")
        parts.append(markup.details(f"{one.title}: {len(one.epochs)} epochs", pair, _last(one), unfolded=True))
    return markup.join(*parts)


def _read(facts: Facts, paths: Sequence[str]) -> Iterator[Training]:
    for path in paths:
        file = facts.run / "steps" / path / FILE
        if not file.is_file():
            continue
        found = store.read_json(file)
        epochs = found.get("epochs") if isinstance(found, dict) else None
        if not isinstance(epochs, list) or not all(_is_log(epoch) for epoch in epochs):
            raise Refused(f"{file} holds no log of a training", fix="run `edgetl compress` again")
        if epochs:
            yield Training(path, epochs, found.get("facts") or {})


def _is_log(epoch: Json) -> bool:
    return isinstance(epoch, dict) and all(isinstance(value, int | float) for value in epoch.values())


def _lines(one: Training, names: Sequence[str], unit: str, factor: float) -> dict[str, Json]:
    """Return a line for each name over the epochs."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(_words(name)),
            "x": [*range(1, len(one.epochs) + 1)],
            "y": [_number(epoch.get(name), factor) for epoch in one.epochs],
            "line": {"color": look, "width": 2},
            "marker": {"color": look, "size": 5},
            "hovertemplate": "epoch %{x}: %{y:.4g}<extra>" + html.escape(_words(name)) + "</extra>",
        }
        for name, look in zip(names, LOOKS, strict=False)
    ]
    every = {"tick0": 1, "dtick": max(1, math.ceil(len(one.epochs) / 8))}  # no half epochs
    epoch = {"title": {"text": "epoch", "standoff": 8}, **every}
    layout = charts.plain_layout(290, x=epoch, y={"title": {"text": unit, "standoff": 12}})
    layout["showlegend"] = len(traces) > 1
    layout["legend"] = {"orientation": "h", "y": -0.4, "x": 0, "yanchor": "top"}
    return {"data": traces, "layout": layout}


def _last(one: Training) -> Markup:
    """Return a table of the last epoch's figures, and of what was found out before the first."""
    lines = [[_words(name), f"{value:.4g}"] for name, value in one.epochs[-1].items()]
    lines += [[_words(name), _told(value)] for name, value in one.facts.items()]
    return markup.table(f"Last epoch of {one.title}", ("what", "value"), lines)


def _told(value: Json) -> str:
    if isinstance(value, list):
        return "; ".join(_told(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_told(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return RATES.get(name, name.replace("_", " "))


def _number(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
