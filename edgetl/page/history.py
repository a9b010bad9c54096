"""The recipe's steps, what each left of the network, and the work inside a file. [no torch]"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgetl import __version__, store
from edgetl.comparison import Row
from edgetl.errors import Refused
from edgetl.overview import count
from edgetl.page import markup
from edgetl.page.facts import Facts
from edgetl.page.markup import Markup
from edgetl.page.times import bar
from edgetl.recipe import yaml12
from edgetl.types import Json

UNKNOWN = "not available"
MOST_LAYERS = 20

STEPS = ("step", "branch", "method", "MACs", "parameters", "exported as", "accuracy %", "drop, points")


def steps(facts: Facts) -> Markup:
    """Return a table of every step on every branch; a network that was not exported is not measured."""
    lines = list(_steps(facts))
    if not lines:
        return markup.tag("p", "The steps of this run are not in its folder.")
    note = (
        "Each line is the network after that step. MACs and parameters are known where a network of the same "
        "architecture is exported; accuracy is of the exported file, first target of the recipe."
    )
    return markup.join(markup.tag("p", note), markup.table("Steps and what each left", STEPS, lines))


def layers(facts: Facts) -> Markup:
    """Return the share of MACs of the layers of every network, folded but for the best student's."""
    first: dict[str, Row] = {}
    for row in facts.rows:
        first.setdefault(row.name, row)
    best = facts.best()
    shown = best.name if best else None
    return markup.join(
        markup.tag("p", "A layer's share of MACs is no share of time, which is the next section."),
        *(
            markup.details(
                f"{name}: {count(row.bundle.manifest['cost']['macs'])} MACs", _layers(row), unfolded=name == shown
            )
            for name, row in first.items()
        ),
    )


def recipe_text(run: Path) -> str | None:
    """Return recipe.yaml as it was resolved, or None where it is not there."""
    path = run / "recipe.yaml"
    return path.read_text("utf-8", errors="replace") if path.is_file() else None


def environment(run: Path) -> dict[str, Json]:
    """Return environment.json, or nothing where it is not there."""
    path = run / "environment.json"
    found = store.read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def commands(folder: str, rows: Sequence[Row]) -> list[str]:
    """Return what repeats the run in a folder, whose path is quoted already."""
    lines = [
        f'pip install "edgetl[compress,report]=={__version__}"',
        f"edgetl run {folder}/recipe.yaml --out {folder}-again",
    ]
    for row in rows[:1]:
        bundle = shlex.quote(f"{row.name}/{row.bundle.folder.name}")
        lines.append(f"edgetl verify {folder}/bundles/{bundle} --data {folder}/eval/test.npz")
    return [*lines, f"edgetl profile {folder} --fresh", f"edgetl report {folder}"]


def _steps(facts: Facts) -> Iterator[list[str]]:
    methods = _methods(facts.run)
    rows: dict[str, Row] = {}
    for row in facts.rows:
        rows.setdefault(row.name, row)
    headers = _headers(facts)
    known = {
        _architecture(headers[paths[-1]]): rows[name].bundle.manifest["cost"]
        for name, paths in facts.plan["steps"].items()
        if name in rows and paths and paths[-1] in headers
    }
    last = {paths[-1]: rows[name] for name, paths in facts.plan["steps"].items() if name in rows and paths}
    for path, header in headers.items():
        cost = known.get(_architecture(header), {})
        step, branch = str(header.get("step", "")), str(header.get("branch", ""))
        yield [step, branch, methods.get(step, "-"), *_cost(cost, facts), *_gain(last.get(path))]


def _headers(facts: Facts) -> dict[str, Mapping[str, Json]]:
    """Return network.json of every step folder that the plan names, in the order of the steps."""
    each = dict.fromkeys(path for folders in facts.plan["steps"].values() for path in folders)
    paths = sorted(each, key=lambda path: path.partition("-")[0])
    found: dict[str, Mapping[str, Json]] = {}
    for path in paths:
        file = facts.run / "steps" / path / "network.json"
        if file.is_file():
            header = store.read_json(file)
            if not isinstance(header, dict):
                raise Refused(f"{file} holds no mapping", fix="run `edgetl compress` again")
            found[path] = header
    return found


def _architecture(header: Mapping[str, Json]) -> str:
    return store.digest([header.get(key) for key in ("family", "config", "edits")])


def _methods(run: Path) -> dict[str, str]:
    text = recipe_text(run)
    read = yaml12.read(text, "recipe.yaml") if text else {}
    listed = read.get("steps") if isinstance(read, dict) else None
    named = {str(s.get("name") or s.get("use")): str(s.get("use")) for s in listed or [] if isinstance(s, dict)}
    return {"source": "the backbone", **named}


def _cost(cost: Mapping[str, Json], facts: Facts) -> tuple[str, str]:
    if not cost:
        return UNKNOWN, UNKNOWN
    whole: Mapping[str, Json] = next((row.bundle.manifest["cost"] for row in facts.rows if row.reference), {})
    return _share(cost["macs"], whole.get("macs")), _share(cost["parameters"], whole.get("parameters"))


def _share(value: float, whole: float | None) -> str:
    share = f" ({100 * value / whole:.0f} %)" if whole and value != whole else ""
    return count(value) + share


def _gain(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    score, drop = row.quality.score, row.quality.drop
    return (
        row.title,
        f"{100 * score.accuracy.value:.2f}" if score else "not measured",
        f"{100 * drop.value:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f})" if drop else "-",
    )


def _layers(row: Row) -> Markup:
    nodes = [node for node in map(_node, row.bundle.manifest["cost"]["nodes"]) if node]
    total = sum(macs for *_, macs in nodes)
    if not total:
        return markup.tag("p", "The bundle names no operations.")
    kinds: Counter[str] = Counter()
    for _, kind, macs in nodes:
        kinds[kind] += macs
    shares = ", ".join(f"{kind} {100 * macs / total:.1f} %" for kind, macs in kinds.most_common(6))
    largest = sorted(nodes, key=lambda node: -node[2])
    lines = [[name, kind, count(macs), bar(macs / total)] for name, kind, macs in largest[:MOST_LAYERS]]
    if rest := [macs for *_, macs in largest[MOST_LAYERS:]]:
        lines.append([f"{len(rest)} smaller ones", "", count(sum(rest)), bar(sum(rest) / total)])
    table = markup.table(f"Largest operations of {row.title}", ("operation", "kind", "MACs", "share"), lines)
    return markup.join(markup.tag("p", f"By kind: {shares}."), table)


def _node(node: Mapping[str, Json]) -> tuple[str, str, int] | None:
    """Return name, kind and MACs of a node in a manifest; a bundle's word for them is not trusted."""
    macs = node.get("macs")
    if not isinstance(macs, int | float) or isinstance(macs, bool) or not 0 < macs < 1e18:
        return None
    return str(node.get("name", ""))[:80], str(node.get("op", ""))[:40], int(macs)
