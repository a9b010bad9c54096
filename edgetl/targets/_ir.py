"""OpenVINO's intermediate representation as one file: a zip of model.xml, deflated, and model.bin, stored. [no torch]

Of a small network the graph as text would be larger than the weights.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import BadInput, Refused
from edgetl.explain.onnx_graph import read_graph

if TYPE_CHECKING:
    import openvino

GRAPH, WEIGHTS = "model.xml", "model.bin"

MOST_GRAPH = 2**26
"""Bytes of a graph as text: of large networks it has a few millions."""

_AGAIN = "copy the bundle again, or export it again"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
"""The system that zip files are said to come from, wherever they are written."""


def converted(runtime: ModuleType, base: Path) -> openvino.Model:
    """Return the model that OpenVINO makes of an ONNX file, its nodes called as there.

    Its converter proper, ovc, does the same, and sends telemetry.

    Raises:
        BadInput: it has no form of this network.

    """
    try:
        model = runtime.Core().read_model(base)
    except RuntimeError as error:
        problem = f"OpenVINO cannot convert {base.parent.name}: {last_line(error)}"
        raise BadInput(problem, fix="export it for the target onnx") from error
    graph = read_graph(base.read_bytes())
    last = {name: node.name for name, node in graph.producers().items() if name in graph.outputs}
    for node in model.get_ops():  # OpenVINO calls the node behind an output as the output
        node.set_friendly_name(last.get(node.get_friendly_name(), node.get_friendly_name()))
    _number(model)
    return model


def _number(model: openvino.Model) -> None:
    """Name each node that OpenVINO inserted by its place: it counts all that a process ever made."""
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}/{place}")


def written(runtime: ModuleType, model: openvino.Model, *, halved: bool) -> bytes:
    """Return the file of a model, without the notes of the tools that made it; equal models give equal bytes."""
    _number(model)
    for key in list(model.rt_info):
        del model.rt_info[key]
    with tempfile.TemporaryDirectory(prefix="edgetl-openvino-") as scratch:
        graph = Path(scratch) / GRAPH
        runtime.save_model(model, graph, compress_to_fp16=halved)
        return pack(graph.read_bytes(), graph.with_name(WEIGHTS).read_bytes())


def pack(graph: bytes, weights: bytes) -> bytes:
    """Return the file of a graph and its weights; equal ones give equal bytes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, data, method in ((GRAPH, graph, zipfile.ZIP_DEFLATED), (WEIGHTS, weights, zipfile.ZIP_STORED)):
            member = zipfile.ZipInfo(name, _EARLIEST)
            member.create_system = _UNIX
            archive.writestr(member, data, method, compresslevel=9)
    return written.getvalue()


def unpack(runtime: ModuleType, data: bytes) -> tuple[bytes, openvino.Tensor]:
    """Return the graph and the weights of a file, each read once and never written to a disk.

    Raises:
        Refused: it is no such file, or is damaged.

    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if set(members) == {GRAPH, WEIGHTS} and _bounded(members, len(data)):
                weights = runtime.Tensor(runtime.Type.u8, runtime.Shape([members[WEIGHTS].file_size]))
                weights.data[:] = np.frombuffer(archive.read(WEIGHTS), np.uint8)
                return archive.read(GRAPH), weights
    except _UNREADABLE as error:
        raise Refused(f"the file holds no model of OpenVINO: {str(error)[:200]}", fix=_AGAIN) from error
    problem = f"the file holds no model of OpenVINO: {GRAPH} and {WEIGHTS} are not there, or not alone, or too large"
    raise Refused(problem, fix=_AGAIN)


def _bounded(members: Mapping[str, zipfile.ZipInfo], size: int) -> bool:
    """Say whether a file of this size, which may lie about its members, takes little more memory than that."""
    return members[GRAPH].file_size <= MOST_GRAPH and members[WEIGHTS].file_size <= size


def last_line(error: BaseException) -> str:
    """Return the last line of what OpenVINO says: those before it name its own source files."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
