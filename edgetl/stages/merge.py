"""Adapters trained elsewhere, folded into their backbone: the result is a saved network. [host: torch]"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgetl import plugins, store
from edgetl.errors import BadInput
from edgetl.methods.lora import merge_adapter
from edgetl.network import network as networks
from edgetl.network import saved, source

log = logging.getLogger("edgetl")


def merge(base: str, adapters: Sequence[Path], out: Path, labels: tuple[str, ...] | None = None) -> Path:
    """Merge peft adapters into a backbone or saved network, in this order, and return the network's folder.

    `labels` are the class names where the backbone's checkpoint does not carry those of the task.

    Raises:
        BadInput: the base or an adapter is missing, or they do not fit together.
        Refused: a file is unsafe or damaged.

    """
    folder = source.locate(base)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already and not an empty folder", fix="choose another folder with --out")
    if saved.is_saved(folder):
        net = networks.load(folder)
    else:
        config = source.read_config(folder)
        names = labels or source.file_labels(config)
        if len(names) < 2:
            raise BadInput(f"{base} carries no class names", fix="give them: --labels cat,dog")
        net = networks.create(_family(folder), str(folder), names, seed=0)
    for adapter in adapters:
        log.info("merging %s", adapter)
        net = merge_adapter(net, adapter)
    assets = folder if (folder / "tokenizer.json").is_file() else None
    with store.folder_being_made(out) as temporary:
        networks.save(net, temporary, {}, assets)
        networks.check_plain(net, temporary)
    return out


def _family(folder: Path) -> str:
    """Return the name of the family that reads a checkpoint."""
    reasons = []
    for name in plugins.names("families"):
        try:
            plugins.find("families", name).config(str(folder), 2)
        except BadInput as e:
            reasons.append(f"{name}: {e.problem}")
        else:
            return name
    raise BadInput(f"no family reads {folder} ({'; '.join(reasons)})", fix="use a ViT or BERT checkpoint")
