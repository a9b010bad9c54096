"""Scores in a folder: what the silence of every unit distorts, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgetl.methods.optin.score import Distortion
from edgetl.network.family import Group

FILE = "scores.npz"


def write(folder: Path, found: Mapping[str, Distortion]) -> None:
    """Write the distortions of all units."""
    terms = {f"{name}.manifold": d.manifold for name, d in found.items()}
    np.savez(folder / FILE, allow_pickle=False, **terms, **{f"{name}.output": d.output for name, d in found.items()})


def read(folder: Path, groups: Sequence[Group]) -> dict[str, Distortion]:
    """Return the distortions of the groups' units."""
    with np.load(folder / FILE, allow_pickle=False) as stored:
        return {g.name: Distortion(stored[f"{g.name}.manifold"], stored[f"{g.name}.output"]) for g in groups}
