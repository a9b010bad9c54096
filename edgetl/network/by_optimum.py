"""The base ONNX of an uncut network of transformers by optimum's exporter, a second way to it. [host: torch]

It needs optimum-onnx, which wants transformers 4.57: an environment of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from torch import Tensor, nn

from edgetl.errors import BadHost, BadInput
from edgetl.network.network import Network
from edgetl.network.to_onnx import OPSET, SCOPES, configurations, plain_attention, quiet, write

if TYPE_CHECKING:
    from optimum.exporters.onnx import OnnxConfig

PACKAGE = "optimum-onnx"
TASKS = {"image": "image-classification", "text": "text-classification"}
FIX = 'in an environment of its own: pip install "edgetl[compress,optimum]"'


class _Answer(nn.Module):
    """A network that looks to optimum like a classifier of transformers."""

    def __init__(self, net: Network, config: Any) -> None:
        super().__init__()
        self.module, self.config, self.logits = net.module, config, net.logits

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the answer to the inputs that are given; optimum looks their names up."""
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return {"logits": self.logits({name: value for name, value in given.items() if value is not None})}


def why_not(net: Network) -> str | None:
    """Return why optimum's exporter is not for this network, or None where it is."""
    if net.edits:
        return "it is cut"
    if net.family.data not in TASKS or not configurations(net.module):
        return f"{net.family.name} is no architecture of transformers"
    return None


def release() -> str:
    """Return the exporter's name and version.

    Raises:
        BadHost: it is not installed.

    """
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        raise BadHost("optimum's exporter is not installed", fix=FIX) from None


def to_onnx(net: Network, path: Path) -> None:
    """Write the network as one ONNX file with the names, inputs and outputs that edgetl's own exporter gives it.

    Raises:
        BadHost: optimum's exporter is not installed.
        BadInput: the network is cut, or no architecture that it knows.

    """
    if reason := why_not(net):
        raise BadInput(f"optimum's exporter does not take this network: {reason}", fix="export it by torch")
    release()
    from optimum.exporters.onnx import export

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        with quiet(), plain_attention(net.module):
            config = configurations(net.module)[0]
            export(
                _Answer(net, config), _configuration(net, config), file, opset=OPSET, input_shapes=_sizes(net),
                disable_dynamic_axes_fix=True,
            )  # fmt: skip
        model = onnx.load(file)
    _note_modules(model)
    write(model, net, path)


def _configuration(net: Network, config: Any) -> OnnxConfig:
    """Return what optimum exports the architecture with, for the inputs and the dynamic axes of its family."""
    from optimum.exporters.tasks import TasksManager

    kind, task = config.model_type, TASKS[net.family.data]
    try:
        make = TasksManager.get_exporter_config_constructor(
            "onnx", model_type=kind, task=task, library_name="transformers"
        )
    except (KeyError, ValueError):
        raise BadInput(f"optimum's exporter knows no {kind} for {task}", fix="export it by torch") from None
    axes = {0: "batch", **({1: "tokens"} if net.family.data == "text" else {})}
    wanted = dict.fromkeys(net.family.example(net.config, 1), axes)

    class Ours(make.func):  # type: ignore[name-defined,misc]
        @property
        def inputs(self) -> Mapping[str, Mapping[int, str]]:
            return wanted

    return Ours(config, **make.keywords)


def _sizes(net: Network) -> dict[str, int]:
    """Return what optimum cannot read from every configuration: the sides of an image, in pixels."""
    if net.family.data != "image":
        return {}
    *_, height, width = net.family.example(net.config, 1)["pixel_values"].shape
    return {"height": height, "width": width}


def _note_modules(model: onnx.ModelProto) -> None:
    """Note the modules of every node as torch's newer exporter does; optimum's has them in the node's name."""
    for node in model.graph.node:
        scopes: list[str] = []
        for part in node.name.strip("/").split("/")[:-1]:
            holder, _, index = part.rpartition(".")
            again = bool(scopes) and index.isdigit() and scopes[-1].rpartition(".")[2] == holder  # a sequence's member
            above = scopes[-1].rpartition(".")[0] if again else (scopes or [""])[-1]
            scopes.append(f"{above}.{part}".removeprefix("."))
        node.metadata_props.append(onnx.StringStringEntryProto(key=SCOPES, value=repr(scopes)))
