"""What was logged of a training, epoch by epoch, kept beside the network that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgetl import store
from edgetl.train.lesson import Term
from edgetl.types import Json

SCHEMA_VERSION = 1
NAME = "training.json"


def write(work: Path, logs: Sequence[Mapping[str, float]], terms: Sequence[Term]) -> None:
    """Write the logs of all epochs into a step's scratch folder, and what its losses found out when they were made."""
    facts: dict[str, Json] = {}
    for term in terms:
        facts |= term.loss.facts
    epochs = [dict(one) for one in logs]
    store.write_json(work / NAME, {"schema_version": SCHEMA_VERSION, "epochs": epochs, "facts": facts})


def keep(work: Path, folder: Path) -> None:
    """Copy them to a folder, where there are any."""
    if (work / NAME).is_file():
        store.write_bytes(folder / NAME, (work / NAME).read_bytes())
