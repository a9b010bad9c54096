"""The rows of a report: what is known of every exported file of a run. [no torch]"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate, gates, store
from edgetl.bundle import Bundle, open_bundle
from edgetl.errors import BadInput, GateMissed, Refused
from edgetl.evaluate import Score, interval_json
from edgetl.gates import Facts, Verdict
from edgetl.intervals import Interval
from edgetl.measure import measurement
from edgetl.measure.comparing import across_runs
from edgetl.measure.measurement import Measurement
from edgetl.recipe.plan import files, folder_name
from edgetl.types import Json

NOTHING = Interval(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Row:
    """One exported file: what it costs, how good and how fast it is, and the limits it keeps."""

    name: str
    target: str
    precision: str
    asked: str  # the precision that the recipe names, which may be "auto"
    reference: bool
    judged: bool  # a student, or the reference where the recipe makes nothing else
    bundle: Bundle
    size_bytes: int
    quality: Quality
    measured: Mapping[str, Measurement]  # by device
    verdicts: tuple[Verdict, ...]

    @property
    def title(self) -> str:
        """The row's name in tables."""
        chosen = " (auto)" if self.asked == "auto" else ""
        return f"{self.name} {self.target} {self.precision}{chosen}"

    def missed(self, device: str | None) -> list[Verdict]:
        """Return the limits that it does not keep, of those that hold everywhere or on the device."""
        return gates.missed(self.verdicts, device)

    def to_json(self) -> dict[str, Json]:
        """Return the plain data of report.json; null is not measured."""
        manifest, quality = self.bundle.manifest, self.quality
        worst = quality.class_drop
        return {
            "name": self.name,
            "target": self.target,
            "precision": self.precision,
            "dtypes": manifest.get("dtypes"),
            "given_back": manifest["provenance"].get("given_back"),
            "ladder": manifest["provenance"].get("ladder"),
            "reference": self.reference,
            "sha256": self.bundle.sums[manifest["file"]],
            "bundle_sha256": measurement.identity(self.bundle.sums),
            "macs": manifest["cost"]["macs"],
            "parameters": manifest["cost"]["parameters"],
            "size_bytes": self.size_bytes,
            "accuracy": quality.score.to_json() if quality.score else None,
            "accuracy_drop": interval_json(quality.drop) if quality.drop else None,
            "class_drop": {"label": worst[0], **interval_json(worst[1])} if worst else None,
            "parity": {"max_abs": manifest["parity"]["max_abs"], "n": manifest["parity"]["n"]},
            "agreement": interval_json(quality.agreement) if quality.agreement else None,
            "measurements": {device: m.to_json() for device, m in self.measured.items()},
            "gates": [{**vars(v), "passes": v.passes} for v in self.verdicts],
        }


def rows(run: Path, plan: Mapping[str, Json]) -> list[Row]:
    """Return a row for every bundle that the plan names and that is there, the reference first.

    A bundle of a network that the run has replaced since is as good as not there.

    Raises:
        Refused: a bundle or an array of the run is damaged.

    """
    tests = Tests(run, _labels(run), _reference_logits(run, plan))
    folders = [(name, run / "bundles" / name / folder_name(t)) for name, t in files(plan)]
    every = [(name, open_bundle(f)) for name, f in folders if (f / "manifest.json").is_file()]
    opened = [(name, bundle) for name, bundle in every if _current(run, plan, name, bundle)]
    references = [bundle for name, bundle in opened if name == plan["reference"]]
    cost = min((b.manifest["cost"]["macs"] for b in references), default=0)
    baselines = frozenset(measurement.identity(b.sums) for b in references)
    return [
        _row(
            name, bundle, plan, tests, _measurements(run, bundle, baselines), cut=bundle.manifest["cost"]["macs"] < cost
        )
        for name, bundle in opened
    ]


def against_fp32(row: Row, rows: Sequence[Row]) -> dict[str, Interval]:
    """Return, by device, a file's time over that of the same network at fp32, of the same target where there is one.

    Empty for fp32 itself, and where one of the two has no valid measurement.
    """
    same = [one for one in rows if one.name == row.name and one.precision == "fp32"]
    own = min(same, key=lambda one: one.target != row.target, default=row)
    found = {}
    for device, m in row.measured.items() if row.precision != "fp32" else ():
        fp32 = own.measured.get(device)
        if fp32 is not None and "invalid" not in (m.verdict, fp32.verdict):
            with contextlib.suppress(BadInput):  # measured with other versions or settings, or another baseline
                found[device] = across_runs(m, fp32)
    return found


def judge(run: Path, plan: Mapping[str, Json], device: str | None = None) -> None:
    """Check every file of a run against the limits that hold everywhere, and on a device where one is given.

    What was not measured is left to the report.

    Raises:
        GateMissed: it names every file that misses one, the gate, the value and the limit.

    """
    judged = {row.title: row.missed(device) for row in rows(run, plan) if row.judged}
    missed = {title: [v for v in verdicts if v.kept is False] for title, verdicts in judged.items()}
    if told := [f"{title} misses {'; '.join(map(str, verdicts))}" for title, verdicts in missed.items() if verdicts]:
        raise GateMissed("; ".join(told), fix=gates.REMEDY)


@dataclass(frozen=True)
class Tests:
    """The test split of a run; None where it is not there."""

    run: Path
    y: NDArray[np.int64] | None  # (n,)
    reference: NDArray[np.float32] | None  # (n, K) answers of the reference exported at fp32


@dataclass(frozen=True)
class Quality:
    """How good the answers of one file are on the whole test split; None is not measured."""

    score: Score | None = None
    drop: Interval | None = None
    class_drop: tuple[str, Interval] | None = None  # the worst class
    agreement: Interval | None = None  # with its own torch network


def _current(run: Path, plan: Mapping[str, Json], name: str, bundle: Bundle) -> bool:
    """Say whether a bundle holds the network that the plan's last step made; without the steps, as copied, it does."""
    steps = plan["steps"].get(name)
    path = run / "steps" / steps[-1] / "network.json" if steps else run
    return not path.is_file() or store.read_json(path).get("digest") == bundle.manifest["provenance"].get(
        "network_sha256"
    )


def _row(
    name: str,
    bundle: Bundle,
    plan: Mapping[str, Json],
    tests: Tests,
    measured: Mapping[str, Measurement],
    *,
    cut: bool,
) -> Row:
    manifest, reference = bundle.manifest, name == plan["reference"]
    asked = bundle.folder.name.rpartition("-")[2]
    planned = any(folder_name(t) == bundle.folder.name for t in plan["targets"])
    judged = not reference or (not plan["students"] and planned)
    quality = _quality(bundle, name, tests, paired=judged)
    size = (bundle.folder / manifest["file"]).stat().st_size
    facts = Facts(
        accuracy=quality.score.accuracy if quality.score else None,
        f1=quality.score.macro_f1 if quality.score else None,
        drop=quality.drop,
        class_drop=quality.class_drop[1] if quality.class_drop else None,
        agreement=quality.agreement,
        size_bytes=size,
        cut=cut,
        timings={device: measurement.timing(m) for device, m in measured.items()},
    )
    budgets = gates.with_own(plan["budgets"], {device: m.device.limit_p90_ms for device, m in measured.items()})
    verdicts = tuple(gates.judge(plan["gates"], budgets, facts)) if judged else ()
    target, precision = manifest["target"], manifest["precision"]
    return Row(name, target, precision, asked, reference, judged, bundle, size, quality, measured, verdicts)


def _quality(bundle: Bundle, name: str, tests: Tests, *, paired: bool) -> Quality:
    manifest, folder, y = bundle.manifest, tests.run / "students" / name, tests.y
    logits = _array(folder / f"{bundle.folder.name}.npy")
    torch = _array(folder / "logits.npy")
    if logits is None or y is None:
        return Quality()
    for other in (torch, tests.reference):
        if other is not None and other.shape != logits.shape:
            raise Refused(
                f"{folder}: answers of shapes {logits.shape} and {other.shape}", fix="run `edgetl export` again"
            )
    score = evaluate.score(logits, y, manifest["labels"])
    agreement = evaluate.agreement(torch, logits) if torch is not None else None
    if tests.reference is None or not paired:
        return Quality(score, agreement=agreement)
    if np.array_equal(tests.reference, logits):  # the reference itself loses nothing, and that is certain
        return Quality(score, NOTHING, (manifest["labels"][0], NOTHING), agreement)
    drop = evaluate.drop(tests.reference, logits, y)
    return Quality(score, drop, class_drop(tests.reference, logits, y, manifest["labels"]), agreement)


def class_drop(
    reference: NDArray[np.float32], logits: NDArray[np.float32], y: NDArray[np.int64], labels: Sequence[str]
) -> tuple[str, Interval]:
    """Return the class that lost most accuracy and its paired drop, a share; of equals the least certain."""
    drops = {
        label: evaluate.drop(reference[y == k], logits[y == k], y[y == k])
        for k, label in enumerate(labels)
        if (y == k).any()
    }
    return max(drops.items(), key=lambda item: (item[1].value, item[1].high))


def _measurements(run: Path, bundle: Bundle, baselines: frozenset[str]) -> dict[str, Measurement]:
    """Return the newest measurement of exactly this bundle on each device; ratios to other baselines are left out."""
    manifest = bundle.manifest
    start = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
    found: dict[str, Measurement] = {}
    for path in sorted((run / "measurements").glob(f"*/{start}-*.json")):
        one = measurement.read(path)
        newest = found.get(one.device.profile)
        if one.bundle.sha256 != measurement.identity(bundle.sums):
            continue
        if one.comparison is not None and one.comparison.baseline_sha256 not in baselines:
            one = one.model_copy(update={"comparison": None})
        if newest is None or one.run.started_utc >= newest.run.started_utc:
            found[one.device.profile] = one
    return found


def _reference_logits(run: Path, plan: Mapping[str, Json]) -> NDArray[np.float32] | None:
    """Return the answers of the reference exported at fp32."""
    folder = run / "students" / plan["reference"]
    fp32 = [_array(folder / f"{t['use']}-fp32.npy") for t in plan["targets"] if t["precision"] == "fp32"]
    return next((logits for logits in (*fp32, _array(folder / "onnx-fp32.npy")) if logits is not None), None)


def _labels(run: Path) -> NDArray[np.int64] | None:
    path = run / "eval" / "test.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["y"], np.int64)
    except (OSError, ValueError, KeyError) as e:
        raise Refused(f"{path} is damaged: {e}", fix="delete it and run `edgetl export` again") from e


def _array(path: Path) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, EOFError) as e:
        raise Refused(f"{path} is damaged: {e}", fix="delete it and run `edgetl export` again") from e
