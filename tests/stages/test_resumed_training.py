"""A killed training goes on from its own checkpoint, and never from that of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.network.network import load
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from tests.stages.conftest import Killed, Write


def learning(*layers: int) -> list[dict[str, Any]]:
    """Steps whose second learns from blocks of the first's network."""
    losses = [{"use": "labels"}, {"use": "hidden", "layers": {n: n for n in layers}}]
    taught = {"teacher": {"step": "dense"}, "losses": losses}
    return [
        {"use": "finetune", "name": name, "schedule": {"epochs": 2, "batch": 64}, **more}
        for name, more in (("dense", {}), ("taught", taught))
    ]


def test_other_settings_do_not_go_on_from_a_killed_trainings_checkpoint(
    tiny: Write, tmp_path: Path, killed: Killed
) -> None:
    with killed(after=3):  # the second step's first epoch
        compress(read(tiny(steps=learning(0))), tmp_path / "run")
    assert list((tmp_path / "run" / "steps" / ".work").rglob("epoch-1.safetensors"))
    changed = read(tiny(steps=learning(1)))
    student = load(compress(changed, tmp_path / "run")["taught"])
    whole = load(compress(changed, tmp_path / "whole")["taught"])
    assert student.digest == whole.digest
