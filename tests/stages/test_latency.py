"""Networks timed in the middle of a run: kept once measured, refused where that is impossible, gone on with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _pytest.monkeypatch import MonkeyPatch

from edgetl.device import probe
from edgetl.errors import BadHost, BadInput
from edgetl.measure import noise, rounds
from edgetl.measure.measurement import Measurement
from edgetl.network.network import Network, create, load
from edgetl.recipe.read import check, read
from edgetl.stages import latency
from edgetl.stages.compress import compress
from edgetl.stages.latency import Bench, latencies, trial
from edgetl.targets.onnx import Onnx
from edgetl.train.batches import Data
from tests import clockwork
from tests.contract.conftest import LABELS, tiny_prepared
from tests.stages.conftest import Write, times

SIZES = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
}  # fmt: skip
OPTIN = {"use": "optin", "samples": 8, "max_latency": {"device": "local", "share": 0.8}}
TRAIN = {"use": "finetune", "name": "dense", "schedule": {"epochs": 1}}


@pytest.fixture(autouse=True)
def _brief(monkeypatch: MonkeyPatch) -> None:
    """Short rounds by a clock of the test's own."""
    clockwork.wind(monkeypatch)


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    """An uncut network, and two that are quicker."""
    net = create("hf_vit", {**SIZES, "num_hidden_layers": 1, "intermediate_size": 1024}, LABELS, 0)
    small = [[g.keep(range(n)) for g in net.family.units(net.module) if g.kind == "neurons"] for n in (512, 16)]
    return [net, *(net.edit(edits) for edits in small)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    inputs = trial(Data(tiny_prepared(tmp_path)), 4)
    return Bench(Onnx(), inputs, tmp_path / "scratch", tmp_path / "shared", tmp_path / "old")


class Calls:
    """How many artifacts each set of measuring processes had; where `stop` sets are done, the user stops the run."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.stop: int | None = None


@pytest.fixture
def calls(monkeypatch: MonkeyPatch) -> Calls:
    found, measure = Calls(), rounds.measure

    def counted(*given: Any) -> list[rounds.Measured]:
        if len(found.sizes) == found.stop:
            raise KeyboardInterrupt
        found.sizes.append(len(given[0]))
        return measure(*given)

    monkeypatch.setattr(rounds, "measure", counted)
    return found


def shares(found: list[Measurement]) -> list[float]:
    return [m.comparison.ratio for m in found[1:] if m.comparison]


def test_networks_are_timed_together_once_and_read_ever_after(
    networks: list[Network], bench: Bench, calls: Calls, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "HALF_WIDTH", -1.0)  # a table is fitted through uncertain ones, too
    first = latencies(networks, probe(), bench)
    assert len({m.run.id for m in first}) == 1
    assert [m.comparison is None for m in first] == [True, False, False]
    assert shares(first)[1] < shares(first)[0]
    written = times(bench.shared)
    again = latencies(networks, probe(), bench)
    assert (again, calls.sizes, times(bench.shared)) == (first, [3], written)
    assert [p.name for p in (bench.scratch / "bundles").iterdir()] == [networks[0].digest[:16]]  # others are deleted


@pytest.mark.slow
def test_what_tells_nothing_is_an_error_and_is_not_kept(
    networks: list[Network], bench: Bench, calls: Calls, monkeypatch: MonkeyPatch
) -> None:
    now = noise.state
    with monkeypatch.context() as here:
        here.setattr(noise, "state", lambda *given: replace(now(*given), battery=True))
        here.setattr(latency, "TRIES", 1)
        with pytest.raises(BadHost, match="battery"):
            latencies(networks, probe(), bench)
    monkeypatch.setattr(noise, "HALF_WIDTH", -1.0)
    with pytest.raises(BadHost, match="cannot be measured") as caught:
        latencies(networks[:2], probe(), bench)
    assert caught.value.code == 4
    assert calls.sizes == [3, 2, 2]  # the second was repeated
    assert not list(bench.shared.glob("latency-*"))


def model(share: float = 0.8) -> dict[str, object]:
    limit = {**OPTIN, "max_latency": {"device": "local", "share": share}}
    return {"model": {"family": "hf_vit", "source": SIZES}, "steps": [TRAIN, limit]}


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_measured_neither_measures_nor_scores_again(
    tiny: Write, tmp_path: Path, calls: Calls, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setitem(rounds.EFFORTS, "quick", replace(rounds.EFFORTS["quick"], rounds=5, most=5, window_s=0.1))
    recipe, run = read(tiny(**model())), tmp_path / "run"
    for sets in (1, 3):  # within the tables, and when the scores are there
        calls.stop, before = sets, times(run / "shared")
        with pytest.raises(KeyboardInterrupt):
            compress(recipe, run)
        assert before.items() <= times(run / "shared").items()
    calls.stop, before = None, times(run / "shared")
    assert any("optin-scores" in path for path in before)
    student = compress(recipe, run)["optin-local-0.8"]
    assert before.items() <= times(run / "shared").items()
    assert len(calls.sizes) == len(list((run / "shared").glob("latency-*")))  # no set twice
    before, digest = times(run / "shared"), load(student).digest
    shutil.rmtree(student)
    assert load(compress(recipe, run)["optin-local-0.8"]).digest == digest  # made again from what was measured
    assert times(run / "shared") == before


@pytest.mark.parametrize(
    ("device", "words"), [("ssh://nobody@127.0.0.1:1", "127.0.0.1"), ("rpi5", "rpi5")], ids=["address", "file"]
)
def test_a_device_that_cannot_be_measured_is_told_before_anything_is_trained(
    tiny: Write, tmp_path: Path, device: str, words: str
) -> None:
    recipe = read(tiny(**{**model(), "steps": [TRAIN, {**OPTIN, "max_latency": {"device": device, "p50_ms": 1}}]}))
    with pytest.raises(BadHost, match=words) as caught:
        compress(recipe, tmp_path / "run")
    assert caught.value.code == 4
    assert not (tmp_path / "run" / "steps").exists()


def test_branches_are_called_by_device_and_limit(tiny: Write) -> None:
    limits = [{"device": "rpi5", "p50_ms": 12}, {"device": "local", "share": 0.50}]
    recipe = read(tiny(steps=[TRAIN, {"use": "optin", "max_latency": limits}]))
    assert recipe.student_names() == ("optin-rpi5-12", "optin-local-0.5")
    again, errors = check(recipe.resolved, "again")
    assert not errors
    assert again is not None
    assert again.resolved == recipe.resolved


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"keep_macs": 0.5, "max_latency": {"device": "local", "p50_ms": 1}}, "steps[1] (optin): max_latency"),
        ({"max_latency": {"device": "rpi55", "p50_ms": 1}}, "did you mean 'rpi5'"),
        ({"max_latency": {"device": "local", "p50": 1}}, "'p50_ms'"),
    ],
)
def test_wrong_limits_are_recipe_errors_with_their_key(tiny: Write, more: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tiny(steps=[TRAIN, {"use": "optin", **more}]))
    assert words in str(caught.value)


def test_without_a_target_nothing_is_trained(tiny: Write, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the recipe has none"):
        compress(read(tiny(**model(), targets=[])), tmp_path / "run")
    assert not (tmp_path / "run" / "steps").exists()
