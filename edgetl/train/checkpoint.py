"""Where an interrupted training goes on: module, losses and optimizer after the last whole epoch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from edgetl import store
from edgetl.types import Json

SCHEMA_VERSION = 1
LOG = logging.getLogger("edgetl")


def save(folder: Path, key: str, lesson: nn.Module, optimizer: Optimizer, logs: Sequence[Mapping[str, float]]) -> None:
    """Write the state after `len(logs)` epochs; the last checkpoint stays valid until this one is whole."""
    tensors = {f"lesson.{name}": tensor for name, tensor in lesson.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    data = save_tensors({name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()})
    file = folder / f"epoch-{len(logs)}.safetensors"
    store.write_bytes(file, data)
    stamp = {"file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "key": key, "logs": [dict(x) for x in logs]}
    store.write_json(folder / "checkpoint.json", {"schema_version": SCHEMA_VERSION, **stamp})
    for old in folder.glob("epoch-*.safetensors"):
        if old != file:
            old.unlink()


def load(folder: Path, key: str, lesson: nn.Module, optimizer: Optimizer) -> list[dict[str, float]]:
    """Fill lesson and optimizer from a checkpoint of this key and return the logs of its epochs.

    Returns an empty list, and changes nothing, where there is none, or it is of another training or damaged.
    """
    stamp = _stamp(folder / "checkpoint.json")
    if stamp is None or stamp.get("schema_version") != SCHEMA_VERSION or stamp.get("key") != key:
        return []
    file = folder / f"epoch-{len(stamp['logs'])}.safetensors"
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != stamp["sha256"]:
        LOG.warning("the checkpoint in %s is damaged; training starts over", folder)
        return []
    tensors = load_tensors(data)
    lesson.load_state_dict({k.removeprefix("lesson."): t for k, t in tensors.items() if k.startswith("lesson.")})
    groups = optimizer.param_groups
    state = _optimizer_state(tensors, [parameter for group in groups for parameter in group["params"]])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return [dict(x) for x in stamp["logs"]]


def _stamp(path: Path) -> dict[str, Json] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _optimizer_state(tensors: Mapping[str, Tensor], trained: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's tensors by the number of their parameter, in its order of memory."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            like = trained[int(number)]
            same = torch.empty_like(like, device="cpu").copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(number), {})[name] = same
    return state
