"""The process that asks ONNX Runtime where the time goes. [no torch, no pydantic]

It is started as `_probe` is, and never in a timed round: the runtime's profiler slows down what it watches. Nothing
is written to stdout, where runtimes print; the result goes to an inherited descriptor as one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl import _onnx_bytes
from edgetl.bundle import open_bundle
from edgetl.errors import BadHost, EdgetlError, OutOfResources
from edgetl.explain.attribution import Origin, origins
from edgetl.explain.onnx_graph import Graph, Node, read_graph
from edgetl.lifeline import end_with_parent
from edgetl.targets import onnx as target
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    import onnxruntime

WARM, LEAST, MOST = 3, 20, 200
"""Calls before anything is timed, and the fewest and most that are."""

EVENTS, SECONDS = 40_000, 3.0
"""No further call is profiled above so many events, or after so long."""

EMPTY_CALLS = 500
"""Calls of the empty graph, which takes microseconds."""


@dataclass(frozen=True)
class Job:
    """What is profiled: a bundle of the onnx target, an .npz of its inputs each (n, ...), and where it may run."""

    bundle: str
    inputs: str
    cpus: tuple[int, ...] | None


@dataclass(frozen=True)
class Kernel:
    """One node as the runtime ran it. Times are means over calls, in microseconds."""

    name: str
    op: str
    module: str
    us: float
    provider: str
    types: tuple[str, ...]  # of its inputs, as far as the runtime says
    node: str  # the operator of the file that it stands for; "" where the runtime put it in
    group: int  # of a convolution; 0 elsewhere
    weight: tuple[int, ...]  # its shape, () where it has none


def main() -> None:
    """Run the job given as `FD JOB` at the end of the command line and exit with the code of its outcome."""
    out, job = int(sys.argv[-2]), Job(**json.loads(sys.argv[-1]))
    code = 0
    try:
        found = _explain(job)
    except MemoryError:
        error: EdgetlError = OutOfResources("the process found no memory", fix="free memory, or use a smaller artifact")
        found, code = {"problem": error.problem, "fix": error.fix}, error.code
    except EdgetlError as failure:
        found, code = {"problem": failure.problem, "fix": failure.fix}, failure.code
    with os.fdopen(out, "wb", closefd=False) as file:
        file.write(json.dumps(found).encode())
    sys.exit(code)


def _explain(job: Job) -> dict[str, Json]:
    end_with_parent()
    if job.cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cpus)
    import onnxruntime

    bundle = open_bundle(Path(job.bundle))
    file, options = bundle.read(bundle.manifest["file"]), bundle.manifest["session"]
    feeds = _feeds(Path(job.inputs))
    with tempfile.TemporaryDirectory(prefix="edgetl-explain-") as scratch:
        plain = target.Onnx.open(file, options, 1)
        call = _call_us(plain, feeds, MOST)
        plain.close()
        session = _profiled(file, options, Path(scratch))
        calls = _calls(session, feeds, len(read_graph(file).nodes))
        events = _events(Path(session.end_profiling()))
        optimised = read_graph((Path(scratch) / "optimised.onnx").read_bytes())
    kernels = list(_kernels(events, read_graph(file), optimised, calls))
    if not kernels:
        raise BadHost("ONNX Runtime's profile holds no node", fix="try another version of onnxruntime")
    return {
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "provider": plain.provider,
        "calls": calls,
        "call_us": call,
        "empty_call_us": _call_us(target.Onnx.open(_empty(), {}, 1), [{"x": np.zeros(1, np.float32)}], EMPTY_CALLS),
        "kernels": [asdict(kernel) for kernel in kernels],
    }


def _profiled(file: bytes, options: Mapping[str, Json], scratch: Path) -> onnxruntime.InferenceSession:
    """Open the file as its session does, at one thread, with the profiler on; the optimised graph is kept."""
    import onnxruntime

    provider, spinning = target.settled(options)
    settings = target.session_options(onnxruntime, 1, spinning)
    settings.enable_profiling = True
    settings.profile_file_prefix = str(scratch / "profile")
    settings.optimized_model_filepath = str(scratch / "optimised.onnx")
    return target.load(onnxruntime, file, settings, provider)


def _feeds(path: Path) -> list[Feed]:
    """Return the inputs one by one."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    n = len(next(iter(arrays.values())))
    return [{name: np.ascontiguousarray(values[i : i + 1]) for name, values in arrays.items()} for i in range(n)]


def _call_us(session: target.OnnxSession, feeds: Sequence[Feed], most: int) -> float:
    """Return the median CPU time of a call, in microseconds."""
    took: list[int] = []
    end = time.monotonic() + SECONDS
    for i in range(WARM + most):
        before = time.process_time_ns()
        session.run(feeds[i % len(feeds)])
        took.append(time.process_time_ns() - before)
        if i >= WARM + LEAST and time.monotonic() > end:
            break
    return statistics.median(took[WARM:]) / 1e3


def _calls(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], nodes: int) -> int:
    """Run the file under the profiler, and return how often after the warm-up."""
    most = max(LEAST, min(MOST, EVENTS // max(1, nodes)))
    end = time.monotonic() + SECONDS
    for i in range(WARM + most):
        session.run(None, dict(feeds[i % len(feeds)]))
        if i + 1 >= WARM + LEAST and time.monotonic() > end:
            return i + 1 - WARM
    return most


def _events(path: Path) -> list[Mapping[str, Json]]:
    """Return the events of kernels in a profile, in the order of time."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadHost("ONNX Runtime's profile cannot be read", fix="try another version of onnxruntime") from error
    return [e for e in found if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")]


def _kernels(events: Sequence[Mapping[str, Json]], file: Graph, optimised: Graph, calls: int) -> Iterator[Kernel]:
    """Return each node that ran, its time averaged over the middle half of the calls: others disturb the rest."""
    origin, took = origins(file, optimised), dict[str, list[int]]()
    last: dict[str, Mapping[str, Json]] = {}
    for event in events:
        name = str(event["name"]).removesuffix("_kernel_time")
        took.setdefault(name, []).append(int(event["dur"]))
        last[name] = event["args"]
    for name, durations in took.items():
        every = sorted(durations[-calls:])
        quarter = len(every) // 4
        middle = every[quarter : len(every) - quarter]
        yield _kernel(name, statistics.fmean(middle), last[name], origin.get(name, Origin("", None)), file)


def _kernel(name: str, us: float, args: Mapping[str, Json], origin: Origin, file: Graph) -> Kernel:
    types = tuple(str(next(iter(entry), "")) for entry in args.get("input_type_shape") or ())
    node = origin.node
    return Kernel(
        name=name,
        op=str(args.get("op_name", "")),
        module=origin.module,
        us=us,
        provider=str(args.get("provider", "")),
        types=types,
        node=node.op if node else "",
        group=node.numbers.get("group", 1) if node and "Conv" in node.op else 0,
        weight=_weight(node, file) if node else (),
    )


def _weight(node: Node, file: Graph) -> tuple[int, ...]:
    """Return the shape of the matrix or kernel that a node reads, also from behind its dequantization."""
    stored = {name: other.inputs[0] for other in file.nodes if other.op == "DequantizeLinear" for name in other.outputs}
    shapes = (file.weights[w].shape for w in (stored.get(i, i) for i in node.inputs) if w in file.weights)
    return next((shape for shape in shapes if len(shape) > 1), ())


def _empty() -> bytes:
    """Return an almost empty graph: what a call of it takes is the runtime's own."""
    return _onnx_bytes.model(
        [_onnx_bytes.node("Identity", ["x"], "y")], [_onnx_bytes.value("x", [1])], [_onnx_bytes.value("y", [1])]
    )


if __name__ == "__main__":
    main()
