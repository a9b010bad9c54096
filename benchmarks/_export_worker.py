"""One process of benchmarks/export.py: opens one file in one runtime, and answers or times it. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[np.generic]]
Call = Callable[[Feed], NDArray[np.float32]]

WARM_CALLS, WARM_S = 10, 0.3
TURN_CALLS, TURN_S = 4, 0.05


def main() -> None:
    job = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    call = OPENERS[job["kind"]](job)
    feeds = samples(Path(job["inputs"]), job["most"])
    if job["answers"]:
        copies = [np.array(call(feed), np.float32) for feed in feeds]  # a runtime may use its output's memory again
        np.save(job["answers"], np.concatenate(copies))
        say({"n": len(feeds)})
    else:
        take_turns(call, feeds)


def say(value: Mapping[str, Any]) -> None:
    """Runtimes print too: the parent reads lines that begin with a brace."""
    print("\n" + json.dumps(value), flush=True)


def samples(path: Path, most: int) -> list[Feed]:
    """The samples of a file, one a feed; a text has its true length."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name][:most] for name in file.files}
    mask = arrays.get("attention_mask")
    found: list[Feed] = []
    for row in range(len(next(iter(arrays.values())))):
        cut = slice(None) if mask is None else slice(max(1, int(mask[row].sum())))
        found.append({k: np.ascontiguousarray(v[row : row + 1] if mask is None else v[row : row + 1, cut])
                      for k, v in arrays.items()})  # fmt: skip
    return found


def take_turns(call: Call, feeds: list[Feed]) -> None:
    """After a warm-up, say the medians of CPU and wall time of a call, in milliseconds, for every line that comes."""
    begin, calls = time.perf_counter(), 0
    while calls < max(WARM_CALLS, len(feeds)) or time.perf_counter() - begin < WARM_S:
        call(feeds[calls % len(feeds)])
        calls += 1
    say({})
    least = TURN_CALLS if "attention_mask" not in feeds[0] else len(feeds)  # texts differ in length
    at = 0
    for _ in sys.stdin:
        call(feeds[at % len(feeds)])  # those that ran meanwhile have taken the caches
        cpu: list[int] = []
        wall: list[int] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < TURN_S or len(cpu) < least:
            feed = feeds[at % len(feeds)]
            before = time.process_time_ns(), time.perf_counter_ns()
            call(feed)
            after = time.process_time_ns(), time.perf_counter_ns()
            cpu.append(after[0] - before[0])
            wall.append(after[1] - before[1])
            at += 1
        say({"cpu_ms": float(np.median(cpu)) / 1e6, "wall_ms": float(np.median(wall)) / 1e6})


def torch_network(job: Mapping[str, Any]) -> Call:
    import torch

    from edgetl.network.network import load

    torch.set_num_threads(job["threads"])
    net = load(Path(job["file"]))
    module: Any = net.module
    if job["kind"] == "torch-compile":
        module = torch.compile(module, dynamic="attention_mask" in net.family.example(net.config, 1))

    def call(feed: Feed) -> NDArray[np.float32]:
        with torch.inference_mode():
            return net.family.logits(module, {k: torch.from_numpy(v) for k, v in feed.items()}).numpy()

    return call


def onnx_runtime(job: Mapping[str, Any]) -> Call:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(job["file"], settings, providers=["CPUExecutionProvider"])
    names, wanted = [session.get_outputs()[0].name], {i.name for i in session.get_inputs()}

    def call(feed: Feed) -> NDArray[np.float32]:
        given = {k: v for k, v in feed.items() if k in wanted}
        if "token_type_ids" in wanted:
            given["token_type_ids"] = np.zeros_like(feed["input_ids"])
        return session.run(names, given)[0]  # type: ignore[no-any-return]

    return call


def openvino(job: Mapping[str, Any]) -> Call:
    """OpenVINO as its guide says for latency, with a static batch of 1 where the inputs allow it."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(job["file"])
    if all(shape.rank.get_length() == 4 for shape in (port.get_partial_shape() for port in model.inputs)):
        model.reshape({port.get_any_name(): [1, *list(port.get_partial_shape())[1:]] for port in model.inputs})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job["threads"], "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": job["hint"]}  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def call(feed: Feed) -> NDArray[np.float32]:
        request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data  # type: ignore[no-any-return]

    return call


def bundle(job: Mapping[str, Any]) -> Call:
    """A bundle of edgetl, by the session that apps use."""
    from edgetl.bundle import open_bundle, open_session

    session = open_session(open_bundle(Path(job["file"])), job["threads"])
    return lambda feed: np.asarray(session.run(feed)["logits"])


OPENERS: Mapping[str, Callable[[Mapping[str, Any]], Call]] = {
    "torch": torch_network,
    "torch-compile": torch_network,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
    "edgetl": bundle,
}

if __name__ == "__main__":
    main()
