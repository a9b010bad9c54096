"""The process that asks ONNX Runtime where each node of an artifact runs, and writes which fell back. [no torch]

ONNX Runtime gives the CPU what its provider cannot do, and says so only in a profile, which slows a session down:
so it is another process than those that are timed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from edgetl.bundle import Bundle, open_bundle, open_session
from edgetl.errors import EdgetlError
from edgetl.lifeline import end_with_parent
from edgetl.types import Json

CPU = "CPUExecutionProvider"
INDICES = frozenset({"int64", "int32", "bool"})
"""What shapes are computed in: a GPU's provider leaves that to the CPU on purpose."""


def main() -> None:
    """Look at the bundle given as `FD BUNDLE INPUTS` at the end of the command line; exit with the code of an error."""
    end_with_parent()
    out, bundle, inputs = int(sys.argv[-3]), Path(sys.argv[-2]), Path(sys.argv[-1])
    code = 0
    try:
        said: dict[str, Json] = {"fallen": fallen(events(open_bundle(bundle), inputs))}
    except EdgetlError as error:
        said, code = {"problem": error.problem, "fix": error.fix}, error.code
    with os.fdopen(out, "wb", closefd=False) as file:
        file.write(json.dumps(said).encode())
    sys.exit(code)


def events(bundle: Bundle, inputs: Path) -> list[Json]:
    """Return ONNX Runtime's profile of one run with the provider that the bundle is opened with."""
    import onnxruntime

    session = open_session(bundle)
    provider = session.provider
    session.close()
    with np.load(inputs, allow_pickle=False) as file, tempfile.TemporaryDirectory(prefix="edgetl-nodes-") as folder:
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling, settings.profile_file_prefix = True, f"{folder}/nodes"
        profiled = onnxruntime.InferenceSession(bundle.read(bundle.manifest["file"]), settings, providers=[provider])
        profiled.run(None, {name: np.ascontiguousarray(file[name][:1]) for name in file.files})
        found: list[Json] = json.loads(Path(profiled.end_profiling()).read_bytes())
        return found


def fallen(events: Iterable[Mapping[str, Json]]) -> list[str]:
    """Return the nodes of a profile that compute values, not shapes, on the CPU, in the order they ran."""
    nodes = [(str(e["name"]), e["args"]) for e in events if e.get("cat") == "Node" and "provider" in e.get("args", {})]
    names = [
        name.removesuffix("_kernel_time") for name, facts in nodes if facts["provider"] == CPU and _computes(facts)
    ]
    return list(dict.fromkeys(names))


def _computes(facts: Mapping[str, Json]) -> bool:
    """Say whether an output is more than shapes and single numbers."""
    outputs = [(kind, shape) for one in facts.get("output_type_shape", []) for kind, shape in one.items()]
    return any(kind not in INDICES and int(np.prod(shape)) > 1 for kind, shape in outputs)


if __name__ == "__main__":
    main()
