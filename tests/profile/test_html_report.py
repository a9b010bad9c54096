from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl import comparison
from edgetl.bundle import open_bundle
from edgetl.errors import Refused
from edgetl.intervals import Interval
from edgetl.measure import measurement
from edgetl.measure.measurement import Measurement
from edgetl.page import charts
from edgetl.page.answers import Answers, Miss, confusion, misses, pictures
from edgetl.page.facts import Facts, Sheet
from edgetl.page.frontier import Point, standings
from edgetl.page.write import page
from edgetl.recipe.plan import read_plan
from edgetl.stages.report import report

VOID = {"meta", "img"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PLAN = {
    "schema_version": 1, "name": "demo", "reference": "dense", "students": ["optin-0.5"],
    "targets": [{"use": "onnx", "precision": "fp32"}], "gates": {"accuracy_drop": 20}, "budgets": {}, "steps": {},
}  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and texts of a page; a wrong nesting is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of the run of two files that nothing has measured."""
    copy = tmp_path / "demo"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("measurements", "report.*"))
    (copy / "plan.json").write_text(json.dumps(PLAN))
    return copy


@pytest.fixture(scope="module")
def timed(run: Path, replay: Callable[..., Measurement], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a noisy measurement of both files: 2 ms and 1 ms."""
    copy = tmp_path_factory.mktemp("timed") / "demo"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("measurements", "report.*"))
    (copy / "plan.json").write_text(json.dumps(PLAN))
    for name, ms in (("dense", 2), ("optin-0.5", 1)):
        walls = [[ms * 1_000_000 + 1000 * (i % 9) + r for i in range(100)] for r in range(3)]
        one, sums = replay(walls), open_bundle(copy / "bundles" / name / "onnx-fp32").sums
        changes = {
            "bundle": one.bundle.model_copy(update={"sha256": measurement.identity(sums), "name": name}),
            "noise": one.noise.model_copy(update={"flags": ["load"]}),
            "verdict": "noisy",
        }
        file = f"{measurement.stem(name, 'onnx', 'fp32')}-0.json"
        measurement.write(one.model_copy(update=changes), copy / "measurements" / "local" / file)
    return copy


def facts(folder: Path, **changes: object) -> Facts:
    plan = {**read_plan(folder), **changes}
    rows = comparison.rows(folder, plan)
    devices = sorted({*plan["budgets"], *(d for row in rows for d in row.measured)}) or [None]
    return Facts(folder, plan, rows, devices, ())


def rendered(made: Facts, *sheets: Sheet) -> Page:
    return Page(page(made, sheets, ["energy"], "var Plotly;"))


def rewrite(bundle: Path, **changes: object) -> None:
    """Change keys of a bundle's manifest, and its sum."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    sums = (bundle / "SHA256SUMS").read_text()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "SHA256SUMS").write_text(re.sub(r"\w{64}(?=  manifest\.json)", digest, sums))


def relabel(folder: Path, labels: Sequence[str]) -> None:
    """Give the bundles of a run other labels."""
    for bundle in folder.glob("bundles/*/*"):
        rewrite(bundle, labels=labels)


def test_the_page_shows_what_the_report_says_and_loads_nothing(timed: Path) -> None:
    pytest.importorskip("plotly", reason="report.html needs the [report] extra")
    report(timed)
    made = Page((timed / "report.html").read_text())
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in made.values("src", "href"))
    assert not {"link", "iframe", "object", "form"} & set(made.tags)
    assert not [name for _, name, _ in made.attributes if name.startswith("on")]
    assert "http" not in made.text
    text = (timed / "report.md").read_text()
    cells = {c.strip() for line in text.splitlines() if line.startswith("| ") for c in line.strip("|").split("|")}
    assert len(cells) > 40
    assert not cells - {t.strip() for t in made.texts} - {""}, "the same figures stand in both"
    for title in ("dense onnx fp32", "optin-0.5 onnx fp32"):
        assert title in made.text
    ids = made.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in made.values("href") if value.startswith("#")} <= set(ids)
    assert set(made.values("data-chart")) == {i for i in ids if i.startswith("chart-")}
    assert "noise flags" in made.text
    assert "the measurement is noisy" in made.text


def test_only_its_own_scripts_may_run(folder: Path) -> None:
    made = rendered(facts(folder))
    policy = next(value for tag, name, value in made.attributes if (tag, name) == ("meta", "content"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    kinds = [value for tag, name, value in made.attributes if (tag, name) == ("script", "type")]
    plain = made.scripts[len(kinds) :]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in plain}
    assert set(re.findall(r"sha256-([^']+)", policy)) == hashes


def test_charts_are_figures_that_plotly_knows(timed: Path) -> None:
    graphs = pytest.importorskip("plotly.graph_objects", reason="the [report] extra is not installed")
    made = facts(timed)
    size = charts.bars(made, [(row, row.size_bytes / 1e6) for row in made.rows], "MB")
    for figure in (charts.trade_off(made, "local"), charts.trade_off(made, None), size):
        assert figure is not None
        graphs.Figure(json.loads(re.sub(r"var\(--\w+\)", "#000000", json.dumps(figure, allow_nan=False))))


def test_without_plotly_the_page_is_skipped_with_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    (folder / "report.html").write_text("of last week")
    report(folder)
    assert 'pip install "edgetl[report]"' in caplog.text
    assert not (folder / "report.html").exists(), "no page of older figures stays behind"
    assert (folder / "report.md").is_file()


def test_hostile_labels_and_names_are_text(folder: Path) -> None:
    relabel(folder, [f"{HOSTILE}{i}" for i in range(10)])
    (folder / "environment.json").write_text(json.dumps({"versions": {HOSTILE: HOSTILE}}))
    (folder / "recipe.yaml").write_text(f"name: '{HOSTILE}'\n")
    made = rendered(facts(folder, name=HOSTILE), Sheet(HOSTILE, [HOSTILE], ["file", HOSTILE], [[HOSTILE, HOSTILE]]))
    assert len([t for t in made.tags if t == "script"]) == len(made.scripts) == 4  # two charts, plotly, ours
    assert not [name for _, name, _ in made.attributes if name.startswith("on")]
    assert "x" not in made.values("src")
    assert made.text.count("alert(1)") > 10
    for chart in made.scripts[:-2]:
        json.loads(chart)
        assert "<" not in chart


def test_a_file_without_a_measurement_is_named_and_not_drawn(timed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(timed, copy)
    shutil.copytree(copy / "bundles" / "optin-0.5", copy / "bundles" / "optin-0.4")
    rewrite(copy / "bundles" / "optin-0.4" / "onnx-fp32", name="optin-0.4")
    shutil.copytree(copy / "students" / "optin-0.5", copy / "students" / "optin-0.4")
    made = facts(copy, students=["optin-0.5", "optin-0.4"])
    assert [spot.row.name for spot in charts.spots(made, "local")] == ["dense", "optin-0.5"]
    assert "without a valid measurement: optin-0.4." in rendered(made).text


def test_a_missed_gate_is_the_headline(folder: Path) -> None:
    text = rendered(facts(folder, gates={"accuracy": 99.9})).text
    assert "no student keeps every limit" in text
    assert "optin-0.5 onnx fp32 comes closest; it misses:" in text
    assert re.search(r"accuracy: 9\d\.\d+, limit 99.9", text)
    assert "rejected" in text


def test_a_device_in_budgets_that_nobody_measured_says_so(folder: Path) -> None:
    made = rendered(facts(folder, budgets={"rpi5": {"p90_ms": 5}}))
    assert "On rpi5" in made.text
    assert "p90_ms on rpi5: not measured, limit 5" in made.text
    assert "Memory: not measured." in made.text
    assert "rejected" in made.text


def test_a_file_may_be_kept_on_one_device_only(timed: Path) -> None:
    made = rendered(facts(timed, budgets={"local": {"p50_ms": 1e5}, "rpi5": {"p90_ms": 5}}))
    assert "kept on local" in made.text
    assert "no student keeps every limit" in made.text


def test_cost_in_macs_stands_for_a_time_that_nobody_measured(folder: Path) -> None:
    made = rendered(facts(folder))
    assert "million" in made.scripts[0], "cost in MACs stands for the time"


def test_with_a_budget_the_most_accurate_ships_else_the_cheapest(timed: Path) -> None:
    both = {"students": ["dense", "optin-0.5"], "reference": "none", "gates": {}}
    names = {}
    for budget in ({}, {"p50_ms": 1e5}, {"p50_ms": 1e-6}):
        row = facts(timed, budgets={"local": budget} if budget else {}, **both).shipped("local")
        names[budget.get("p50_ms")] = row.name if row else None
    assert names == {None: "optin-0.5", 1e5: "dense", 1e-6: None}


def test_many_labels_are_listed_not_drawn(folder: Path) -> None:
    labels = [f"label {i}" for i in range(30)]
    relabel(folder, labels)
    for path in folder.glob("students/*/*.npy"):
        logits = np.load(path)
        np.save(path, np.pad(logits, ((0, 0), (0, 20))))
    made = rendered(facts(folder))
    assert "most frequent confusions" in made.text
    assert "is \\ called" not in made.text


def test_steps_show_their_cost_where_it_is_known(folder: Path) -> None:
    paths = ["00-source/all", "01-dense/all", "02-optin/optin-0.5"]
    for path, edits in zip(paths, ([], [], [{"edit": "keep"}]), strict=True):
        step = folder / "steps" / path
        step.mkdir(parents=True)
        name, _, branch = path.partition("-")[2].partition("/")
        head = {"step": name, "branch": branch, "family": "f", "config": {}, "edits": edits}
        (step / "network.json").write_text(json.dumps(head))
    (folder / "recipe.yaml").write_text("steps:\n- {use: finetune, name: dense}\n- {use: optin, name: optin}\n")
    text = rendered(facts(folder, steps={"dense": paths[:2], "optin-0.5": paths})).text
    assert text.index("source") < text.index("finetune")
    share = re.search(r"[\d.]+ k \((\d+) %\)", text)
    assert share
    assert 0 < int(share[1]) < 50


def test_pictures_are_the_rows_of_the_test_split(folder: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 9), np.uint8)
    np.savez_compressed(folder / "eval" / "test.npz", a=np.zeros((300, 4), np.int64), x=x, y=np.zeros(300, np.int64))
    found = pictures(folder, [299, 7])
    assert set(found) == {7, 299}
    for row, address in found.items():
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), x[row].transpose(1, 2, 0))
    np.savez(folder / "eval" / "test.npz", ids=np.zeros((300, 4), np.int64), y=np.zeros(300, np.int64))
    assert pictures(folder, [7]) == {}


def test_a_damaged_test_split_is_refused(folder: Path) -> None:
    path = folder / "eval" / "test.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refused, match=r"test\.npz"):
        pictures(folder, [1])


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
def test_confusions_and_misses_against_counting(samples: list[tuple[int, int, int]]) -> None:
    y, said, right = (np.array(column) for column in zip(*samples, strict=True))
    student, reference = (Answers(np.eye(4, dtype=np.float32)[a], y) for a in (said, right))
    counts = confusion(student)
    assert all(counts[i, j] == sum((y == i) & (said == j)) for i in range(4) for j in range(4))
    wanted = [Miss(n, t, s) for n, (t, s, r) in enumerate(samples) if t != s and t == r]
    assert misses(student, reference, 12) == wanted[:12]


spans = st.tuples(st.floats(0, 10), st.floats(0, 2), st.floats(0, 2)).map(
    lambda t: Interval(t[0], t[0] - t[1], t[0] + t[2])
)


@given(st.lists(st.builds(Point, spans, spans), min_size=1, max_size=12))
def test_a_point_is_grey_exactly_where_another_is_better(points: list[Point]) -> None:
    ranks = standings(points)
    assert "best" in ranks
    assert standings(points[::-1]) == ranks[::-1]
    for point, rank in zip(points, ranks, strict=True):
        better = [
            other
            for other in points
            if other.cost.value <= point.cost.value
            and other.accuracy.value >= point.accuracy.value
            and (other.cost.value, other.accuracy.value) != (point.cost.value, point.accuracy.value)
        ]
        assert bool(better) == (rank != "best")
        if rank == "worse":
            assert any(o.cost.high < point.cost.low and o.accuracy.low > point.accuracy.high for o in better)


def chromium(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               "--virtual-time-budget=8000", *flags, "--dump-dom", address]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on the PATH")
def test_a_browser_draws_it_on_a_phone(timed: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="report.html needs the [report] extra")
    report(timed)
    path = timed / "report.html"
    seen = chromium(path.as_uri())
    assert seen.stdout.count('class="main-svg"') >= 3, "every chart is drawn under the page's own policy"
    # A frame has the width of a phone whatever the least width of a window; the policy has to let the probe run.
    widths = "[innerWidth, document.documentElement.scrollWidth]"
    probe = f"<script>setTimeout(() => parent.postMessage({widths}, '*'), 1000)</script>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    (tmp_path / "page.html").write_text(text.replace("</body>", probe + "</body>"))
    (tmp_path / "phone.html").write_text(
        "<iframe src=page.html width=390 height=844></iframe>"
        "<script>onmessage = (m) => document.body.append('widths ' + m.data.join(' '))</script>"
    )
    found = re.search(r"widths (\d+) (\d+)", html.unescape(chromium((tmp_path / "phone.html").as_uri()).stdout))
    assert found
    assert int(found[2]) <= int(found[1]), "the page itself does not scroll sideways"
    assert not re.findall(r"Refused to|violates the following Content Security|Uncaught", seen.stderr)


def contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """The ratio of WCAG 2 for two colours from 0 to 255."""
    light = []
    for colour in (a, b):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        light.append(float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme: int) -> None:
    css = (Path(charts.__file__).parent / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colour = {
        name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)], float)
        for name, value in re.findall(r"--(\w+): #(\w{6})", block)
    }
    for name in ("text", "muted", "accent", "good", "bad"):
        for behind in ("page", "raised"):
            assert contrast(colour[name], colour[behind]) >= 4.5, (name, behind)
    for name in ("grey", "warm"):
        assert contrast(colour[name], colour["page"]) >= 3, name
    for name, share in (("good", 0.45), ("bad", 0.45), ("accent", 0.3)):
        assert contrast(colour["text"], share * colour[name] + (1 - share) * colour["page"]) >= 4.5, name
