"""Whether an artifact really runs on the GPU, node by node. [no torch, no runtime]"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from edgetl.device import Device
from edgetl.errors import MEASURING, BadHost
from edgetl.measure.probing import environment
from edgetl.measure.summary import Subject
from edgetl.types import Json

START = "import sys; sys.path.insert(0, sys.argv[1]); from edgetl.measure._placement import main; main()"
TIMEOUT_S = 300.0
SHOWN = 5


def require(subject: Subject, device: Device) -> None:
    """Check that no node of an artifact for a GPU computes on the CPU.

    Raises:
        BadHost: some do; they are named. What was timed then would be neither the GPU nor the CPU.
        EdgetlError: the artifact cannot be opened here.

    """
    manifest = subject.bundle.manifest
    if device.kind in ("cuda", "jetson") and manifest["target"] == "onnx" and _on_gpu(manifest["session"]):
        check(subject.stem, fallen(subject.bundle.folder, subject.inputs))


def check(stem: str, nodes: list[str]) -> None:
    """Check that no node fell back.

    Raises:
        BadHost: some did; they are named.

    """
    if nodes:
        more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        problem = f"{stem}: {len(nodes)} nodes fell back to the CPU: {', '.join(nodes[:SHOWN])}{more}"
        raise BadHost(problem, fix="try another version of onnxruntime-gpu or another precision, or profile on a CPU")


def fallen(bundle: Path, inputs: Path) -> list[str]:
    """Return the nodes that fell back to the CPU, as a process of its own finds out.

    Raises:
        EdgetlError: the artifact cannot be opened here, or the process failed.

    """
    with tempfile.TemporaryFile() as out:
        package, place = str(Path(__file__).parents[2]), str(out.fileno())
        command = [sys.executable, "-I", "-c", START, package, place, str(bundle), str(inputs)]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, env=environment(0), pass_fds=(out.fileno(),),
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            fix = "see whether the GPU's driver hangs: run `nvidia-smi`"
            raise BadHost(f"{bundle}: its nodes could not be asked for in {TIMEOUT_S:.0f} s", fix=fix) from e
        out.seek(0)
        said: Json = json.loads(out.read() or "{}")
    if "fallen" in said:
        return [str(name) for name in said["fallen"]]
    if "problem" in said:
        raise MEASURING.get(ended.returncode, BadHost)(f"{bundle}: {said['problem']}", fix=said["fix"])
    last = (ended.stderr.decode("utf-8", "replace").strip().splitlines() or [f"code {ended.returncode}"])[-1][:200]
    raise BadHost(f"{bundle}: its nodes could not be asked for: {last}", fix="run `edgetl doctor`")


def _on_gpu(options: Json) -> bool:
    return bool(options.get("provider", "cpu") != "cpu")
