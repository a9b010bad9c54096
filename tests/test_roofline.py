from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device import Device, load_device, probe
from edgetl.device import Roofline as Peaks
from edgetl.roofline import Roofline, Work, predict, roofline, times

PEAKS = {"peak": {"fp32_gflops": 100.0, "int8_gops": 400.0}, "bandwidth_gbs": 10.0, "source": "measured"}
works = st.lists(st.builds(Work, *[st.floats(0, 1e12)] * 3), min_size=1, max_size=20)
rates = st.floats(1e-2, 1e6)


def device(cache: int | None = None, **roof: Any) -> Device:
    here = probe()
    arch = here.arch.model_copy(update={"cache_bytes": cache})
    return here.model_copy(update={"arch": arch, "roofline": Peaks.model_validate({**PEAKS, **roof})})


def manifest(*nodes: tuple[float, float, float], precision: str = "fp32") -> dict[str, Any]:
    keys = ("macs", "weight_bytes", "activation_bytes")
    return {
        "precision": precision,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 250, 1000]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "cost": {"tokens": None, "nodes": [{"op": "MatMul", **dict(zip(keys, n, strict=True))} for n in nodes]},
    }


@given(works, st.floats(0, 1e9), rates, rates)
def test_the_bound_lies_between_its_parts_and_their_sum(
    work: list[Work], ends: float, peak: float, bandwidth: float
) -> None:
    compute, memory, nodes = times(work, ends, peak, bandwidth)
    weights = memory - ends / bandwidth / 1e6
    slack = 1 + 1e-9
    assert compute <= nodes * slack
    assert weights <= nodes * slack + 1e-9 * memory
    assert nodes <= (compute + weights) * slack + 1e-9 * memory


@given(works, rates, rates, st.floats(1, 100))
def test_a_faster_device_is_never_bound_higher(work: list[Work], peak: float, bandwidth: float, more: float) -> None:
    slow, fast = times(work, 0, peak, bandwidth), times(work, 0, peak * more, bandwidth * more)
    assert all(f <= s * (1 + 1e-9) for s, f in zip(slow, fast, strict=True))


def test_figures_by_hand() -> None:
    # 1 GFLOP at 100 GFLOP/s is 10 ms, 20 MB and 1 MB of input at 10 GB/s 2.1 ms; the second node is all memory.
    found = roofline(manifest((5e8, 10e6, 1e6), (0.5, 10e6, 2e6)), device(launch_us=2.0), 20.0)
    assert found is not None
    assert found.t_compute_ms == pytest.approx(10.0)
    assert found.t_memory_ms == pytest.approx(2.1, rel=1e-4)
    assert found.t_nodes_ms == pytest.approx(11.0)
    assert found.t_traffic_ms == pytest.approx(2.3)
    assert found.t_overhead_ms == pytest.approx(0.004)
    assert found.pct_of_roofline == pytest.approx(55.0)
    assert (found.bound, found.peak_source) == ("compute", "measured")
    assert found.weights_in_cache is None
    assert "55 % of 11 ms (compute bound, measured peaks)" in str(found)


def test_a_prediction_by_hand() -> None:
    found = predict(manifest((5e8, 10e6, 1e6), (0.5, 10e6, 2e6)), 123, device(launch_us=2.0))
    assert found.ms == pytest.approx(11.004)
    assert (found.memory_bytes, found.size_bytes, found.peak_source) == (22e6, 123, "measured")


def test_a_prediction_takes_what_is_known_and_invents_nothing() -> None:
    file = manifest((5e8, 10e6, 1e6))
    no_peak, nothing = predict(file, 1, device(peak={})), predict(file, 1, probe())
    assert no_peak.ms == pytest.approx(1.1, rel=1e-4)  # what memory alone takes
    assert (nothing.ms, nothing.peak_source, nothing.memory_bytes) == (None, None, 11e6)
    assert predict(file, 1, device(threads=7)).ms is None
    assert predict(manifest((5e8, 10e6, 1e6), precision="int8"), 1, device()).ms == pytest.approx(2.5)


@given(works, rates, rates)
def test_no_file_is_quicker_than_predicted_by_its_roofline(work: list[Work], peak: float, bandwidth: float) -> None:
    file = manifest(*((w.operations / 2, w.weight_bytes, w.activation_bytes) for w in work))
    where = device(peak={"fp32_gflops": peak}, bandwidth_gbs=bandwidth)
    found, bound = predict(file, 0, where), roofline(file, where, 1.0)
    assert found.ms is not None
    assert bound is not None
    assert found.ms == pytest.approx(bound.t_roof_ms)


def test_what_bounds_it() -> None:
    heavy = roofline(manifest((1e3, 50e6, 0)), device(), 10)
    assert heavy is not None
    assert heavy.bound == "memory"
    small = roofline(manifest(*[(1e3, 1e3, 0)] * 50), device(launch_us=20), 10)
    assert small is not None
    assert small.bound == "overhead"
    assert small.t_overhead_ms == pytest.approx(1.0)


def test_precision_changes_bytes_and_peak() -> None:
    def of(precision: str) -> Roofline:
        found = roofline(manifest((5e8, 40e6, 4e6), precision=precision), device(), 20.0)
        assert found is not None
        return found

    assert of("int8").t_compute_ms == pytest.approx(of("fp32").t_compute_ms / 4)
    assert of("w4").t_compute_ms == of("int8").t_compute_ms
    assert of("w4").t_traffic_ms == pytest.approx((5e6 + 4e6) / 10e6)
    assert of("int8").t_traffic_ms == pytest.approx(of("fp32").t_traffic_ms / 4)


def test_weights_that_fit_into_the_cache_are_read_from_there_and_it_is_said() -> None:
    model = manifest((5e8, 10e6, 0))
    cached = roofline(model, device(cache=16 << 20, cache_bandwidth_gbs=100.0), 20)
    beyond = roofline(model, device(cache=8 << 20, cache_bandwidth_gbs=100.0), 20)
    blind = roofline(model, device(cache=16 << 20), 20)
    assert cached is not None
    assert beyond is not None
    assert blind is not None
    assert (cached.weights_in_cache, beyond.weights_in_cache, blind.weights_in_cache) == (True, False, True)
    assert cached.t_memory_ms == pytest.approx(beyond.t_memory_ms / 10)
    assert blind.t_memory_ms == beyond.t_memory_ms
    assert "fit into the last-level cache" in str(cached)


@pytest.mark.parametrize(
    ("model", "where", "p50"),
    [
        (manifest(), device(), 1.0),
        (manifest((1e6, 1e6, 0)), probe(), 1.0),
        (manifest((1e6, 1e6, 0), precision="fp16"), device(), 1.0),
        (manifest((1e6, 1e6, 0), precision="nonsense"), device(), 1.0),
        (manifest((1e6, 1e6, 0)), device(threads=4), 1.0),
        (manifest((1e6, 1e6, 0)), device(bandwidth_gbs=None), 1.0),
        (manifest((1e6, 1e6, 0)), device(), 0.0),
        (manifest((1e6, 1e6, 0)), device(), float("nan")),
        (manifest((1e6, -1, 0)), device(), 1.0),
        (manifest((float("inf"), 1, 0)), device(), 1.0),
        (manifest((10**400, 1, 0)), device(), 1.0),
        ({**manifest(), "cost": {"nodes": [{"name": "n", "op": "MatMul", "macs": 1, "bytes": 8}]}}, device(), 1.0),
        (manifest((1e6, 1e6, 0)), load_device("x86-laptop"), 1.0),
    ],
)
def test_what_is_not_known_is_not_invented(model: dict[str, Any], where: Device, p50: float) -> None:
    assert roofline(model, where, p50) is None


def test_hostile_sizes_stay_numbers() -> None:
    model = manifest((1e6, 1e6, 0))
    model["inputs"][0]["shape"] = ["batch", 10**400, -3, "nowhere"]
    model["cost"]["tokens"] = "many"
    assert roofline(model, device(), 1.0) is not None


def test_json_has_the_keys_of_a_measurement() -> None:
    found = roofline(manifest((5e8, 10e6, 1e6)), device(), 20.0)
    assert found is not None
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"t_compute_ms", "t_memory_ms", "bound", "pct_of_roofline", "peak_source"} <= set(plain)
    assert plain["t_overhead_ms"] is None
