"""The least time that a device's peaks allow an artifact, and how near a measurement comes. [no torch, no pydantic]

For node i with F_i operations (twice its MACs) and W_i bytes of weights, compute takes F_i / peak and memory
W_i / bandwidth. Activations may stay on the chip, so they are no part of the bound. Precision changes both: bytes are
counted as if every weight were stored in it, and as if every node ran at its peak, so that the bound stays one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.device import Device
    from edgetl.device import Roofline as Peaks

_FLOATS = ("fp32_gflops", "tf32_gflops")
_PEAKS: Mapping[str, tuple[str, ...]] = {
    "fp32": _FLOATS,
    "fp16": ("fp16_gflops",),
    "bf16": ("bf16_gflops",),
    "int8": ("int8_gops",),
    "int8_dynamic": ("int8_gops",),
    "w8": (*_FLOATS, "int8_gops"),
    "w4": (*_FLOATS, "int8_gops"),
}
"""The rates that bound the arithmetic of a precision, the highest that the device has: short weights are multiplied in
int8 where the runtime can, else in fp32, and a GPU's runtime may compute fp32 as TF32."""

_BYTES: Mapping[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int8_dynamic": 1, "w8": 1, "w4": 0.5}
"""Bytes of one weight; the manifest counts those of the base file, in fp32."""

_PLAIN = ("int8_dynamic", "w8", "w4")
"""Precisions whose activations stay fp32 between the nodes."""

_MOST = 10**18
"""What no count of a real file exceeds; manifests are untrusted."""

_ENDS = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "int8": 1}


@dataclass(frozen=True)
class Work:
    """What one node does for one sample."""

    operations: float
    weight_bytes: float
    activation_bytes: float


@dataclass(frozen=True)
class Roofline:
    """A lower bound of the latency at batch 1, in milliseconds, and what it says of a measured one."""

    t_compute_ms: float
    t_memory_ms: float  # weights, inputs and outputs, each moved once
    t_traffic_ms: float  # weights and activations, had no node found its input in a cache: no bound
    t_nodes_ms: float  # the sum over nodes of the longer of both
    t_overhead_ms: float | None  # of starting the nodes that compute; None where the device does not say
    bound: Literal["compute", "memory", "overhead"]
    pct_of_roofline: float  # 100 is the bound
    peak_source: Literal["measured", "datasheet"]
    weights_in_cache: bool | None  # then t_memory is that of the cache where its bandwidth is known

    @property
    def t_roof_ms(self) -> float:
        """The tightest bound that arithmetic and memory give."""
        return max(self.t_nodes_ms, self.t_memory_ms)

    def to_json(self) -> dict[str, Json]:
        """Return the `roofline` object of a measurement."""
        return {**asdict(self), "t_roof_ms": self.t_roof_ms}

    def __str__(self) -> str:
        """Say it in one line, for the report."""
        notes = [f"{self.bound} bound", f"{self.peak_source} peaks"]
        if self.weights_in_cache:
            notes.append("the weights fit into the last-level cache")
        return f"{self.pct_of_roofline:.0f} % of {self.t_roof_ms:.3g} ms ({', '.join(notes)})"


@dataclass(frozen=True)
class Prediction:
    """What an artifact takes at best on a device where it was not run, from what its file and the device's say."""

    ms: float | None  # of a call at batch 1; None: the device's file has no rate for this precision and these threads
    memory_bytes: float  # all weights, and the largest of the values between nodes
    size_bytes: int  # of the file
    peak_source: Literal["measured", "datasheet"] | None  # None: no rate is known


def predict(manifest: Mapping[str, Json], size_bytes: int, device: Device) -> Prediction:
    """Return what an artifact takes at best on a device, from those of its rates that are known."""
    peaks, work = device.roofline, works(manifest)
    memory = sum(w.weight_bytes for w in work) + max((w.activation_bytes for w in work), default=0.0)
    peak, bandwidth = _rates(manifest, device)
    if peaks is None or not work or (peak is None and bandwidth is None):
        return Prediction(None, memory, size_bytes, None)
    _, moved, nodes = times(work, _ends(manifest), peak or math.inf, bandwidth or math.inf)
    return Prediction(max(nodes, moved) + (_overhead(work, peaks) or 0.0), memory, size_bytes, peaks.source)


def roofline(manifest: Mapping[str, Json], device: Device, p50_ms: float) -> Roofline | None:
    """Return the roofline of an artifact on a device, given its measured median in milliseconds at batch 1.

    At one thread give the median of CPU time, as the peaks of `devices calibrate` are. None where it is not known: an
    older manifest has no bytes per node, or the device no peak for this precision and these threads.
    """
    peaks = device.roofline
    work = works(manifest)
    peak, bandwidth = _rates(manifest, device)
    if peaks is None or not work or not p50_ms > 0 or peak is None or bandwidth is None:
        return None
    compute, memory, nodes = times(work, _ends(manifest), peak, bandwidth)
    overhead = _overhead(work, peaks)
    roof = max(nodes, memory)
    bound: Literal["compute", "memory", "overhead"] = "compute" if compute >= memory else "memory"
    return Roofline(
        t_compute_ms=compute,
        t_memory_ms=memory,
        t_traffic_ms=sum(w.weight_bytes + w.activation_bytes for w in work) / bandwidth / 1e6,
        t_nodes_ms=nodes,
        t_overhead_ms=overhead,
        bound="overhead" if overhead is not None and overhead > roof else bound,
        pct_of_roofline=100 * roof / p50_ms,
        peak_source=peaks.source,
        weights_in_cache=_cached(work, device.arch.cache_bytes),
    )


def works(manifest: Mapping[str, Json]) -> list[Work]:
    """Return the work of every node that computes, at the precision of the artifact; empty where it is not known."""
    width = _BYTES.get(manifest["precision"])
    nodes = manifest["cost"]["nodes"]
    if width is None or not all(_known(node) for node in nodes):
        return []
    between = 4 if manifest["precision"] in _PLAIN else width
    return [Work(2 * n["macs"], n["weight_bytes"] / 4 * width, n["activation_bytes"] / 4 * between) for n in nodes]


def times(work: Sequence[Work], ends: float, peak: float, bandwidth: float) -> tuple[float, float, float]:
    """Return the milliseconds of all arithmetic, of all memory, and of the nodes one after the other.

    `ends` are the bytes of the graph's inputs and outputs, `peak` is in 10^9 operations and `bandwidth` in 10^9 bytes
    a second.
    """
    compute = [w.operations / peak / 1e6 for w in work]
    memory = [w.weight_bytes / bandwidth / 1e6 for w in work]
    together = sum(max(c, m) for c, m in zip(compute, memory, strict=True))
    return sum(compute), sum(memory) + ends / bandwidth / 1e6, together


def _known(node: Json) -> bool:
    """Whether a node of an untrusted manifest says what it does, with numbers that can be added."""
    values = [node.get(key) for key in ("macs", "weight_bytes", "activation_bytes")]
    return all(type(v) in (int, float) and 0 <= v <= _MOST for v in values)


def _rates(manifest: Mapping[str, Json], device: Device) -> tuple[float | None, float | None]:
    """Return the peak and the bandwidth that hold for an artifact at the device's threads; None is not known."""
    peaks = device.roofline
    if peaks is None or peaks.threads not in (None, device.threads):
        return None, None
    cached = _cached(works(manifest), device.arch.cache_bytes)
    bandwidth = (peaks.cache_bandwidth_gbs if cached else None) or peaks.bandwidth_gbs
    return _peak(peaks, manifest["precision"]), bandwidth


def _overhead(work: Sequence[Work], peaks: Peaks) -> float | None:
    return None if peaks.launch_us is None else len(work) * peaks.launch_us / 1e3


def _peak(peaks: Peaks, precision: str) -> float | None:
    return max((peaks.peak[name] for name in _PEAKS.get(precision, ()) if name in peaks.peak), default=None)


def _cached(work: Sequence[Work], cache: int | None) -> bool | None:
    """Whether all weights fit into the last-level cache; None where its size is unknown."""
    return None if cache is None else sum(w.weight_bytes for w in work) <= cache


def _ends(manifest: Mapping[str, Json]) -> float:
    """Return the bytes of one sample's inputs and outputs; a text has the tokens that its cost was counted for."""
    tokens = manifest["cost"].get("tokens")
    sizes = {"tokens": tokens if type(tokens) is int else 1}
    total = 0.0
    for end in (*manifest["inputs"], *manifest["outputs"]):
        shape = [sizes.get(n, 1) if isinstance(n, str) else n for n in end["shape"]]
        total += math.prod(float(min(max(n, 0), _MOST)) for n in shape) * _ENDS.get(end["dtype"], 0)
    return total
