"""Several processes train what one process trains, and the first alone writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edgetl.intervals import wilson

FIXTURES = str(Path(__file__).parents[1] / "contract" / "conftest.py")

PROGRAM = """
import json, os, sys
from importlib import util
from pathlib import Path
import torch
from edgetl import plugins
from edgetl.examples import Augmentation
from edgetl.network.network import create, save
from edgetl.recipe.schema import Context, Schedule
from edgetl.train.batches import Data
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
spec = util.spec_from_file_location("tiny", sys.argv[1])
tiny = util.module_from_spec(spec)
spec.loader.exec_module(tiny)
torch.set_num_threads(1)
work, job = Path(sys.argv[2]), json.loads(sys.argv[3])
data = Data(tiny.tiny_prepared(work, job["count"]), (Augmentation(op="shift", pixels=1),))
net = create(job["family"], job["sizes"], tiny.LABELS, 0)
ctx = Context(data, 3, work, lambda name: net, lambda *_: work)
schedule = Schedule(**job["schedule"])
losses = [plugins.find("losses", one["use"])(**one) for one in job["losses"]]
logs = fit(net, data, terms(losses, Course(net, None, ctx, schedule.epochs)), schedule, 3, work / "scratch")
rank = os.environ.get("RANK", "")
save(net, work / ("rank" + rank), {})
(work / ("rank" + rank) / "logs.json").write_text(json.dumps(logs))
"""

VIT = {"family": "hf_vit", "sizes": {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16,
       "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}}  # fmt: skip
RESNET = {"family": "resnet_cifar", "sizes": {"depth": 8, "channels": 4, "num_channels": 1, "image_size": 8}}
LABELS = [{"use": "labels"}]
FIFTY = {"epochs": 50, "lr": 2e-3, "batch": 60}
"""One step an epoch, so that its log is that step's; 41 samples are no even number."""


def trained(work: Path, job: dict, ranks: int) -> list[dict]:
    """Return the logs of each process."""
    program = work / "program.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, str(program), FIXTURES, str(work), json.dumps(job)]
    ended = subprocess.run(command, check=False, timeout=180, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    names = ["rank"] if ranks == 1 else [f"rank{k}" for k in range(ranks)]
    return [json.loads((work / name / "logs.json").read_text()) for name in names]


def same_bytes(work: Path, ranks: int) -> bool:
    return len({(work / f"rank{k}" / "model.safetensors").read_bytes() for k in range(ranks)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "losses", "schedule"),
    [
        (2, LABELS, FIFTY),
        (3, LABELS, {"epochs": 2, "lr": 2e-3, "batch": 20}),  # the last batch holds one sample
        (2, [{"use": "ps_kd"}], {"epochs": 10, "lr": 2e-3, "batch": 20}),
        (2, [{"use": "lsskd", "heads": "light"}], {"epochs": 4, "lr": 2e-3, "batch": 20}),
        (2, LABELS, {"epochs": 6, "lr": 2e-3, "batch": 20, "mix": {"op": "cutmix"}, "ema": 0.9}),
    ],
)
def test_losses_agree_with_one_process_and_all_end_with_the_same_bytes(tmp_path, ranks, losses, schedule):
    job = {**VIT, "count": 62, "losses": losses, "schedule": schedule}
    (one,) = trained(tmp_path, job, 1)
    several = trained(tmp_path, job, ranks)
    assert all(logs == several[0] for logs in several)
    assert [x["loss"] for x in several[0]] == pytest.approx([x["loss"] for x in one], rel=1e-4)
    assert same_bytes(tmp_path, ranks)
    whole, part = (load_file(tmp_path / name / "model.safetensors") for name in ("rank", "rank0"))
    assert max(float((whole[k] - part[k]).abs().max()) for k in whole) < 1e-3


@pytest.mark.slow
def test_batch_norm_is_taken_by_each_process_and_agrees_within_the_interval(tmp_path):
    job = {**RESNET, "count": 600, "losses": LABELS, "schedule": {"epochs": 6, "lr": 5e-3, "batch": 32}}
    (one,) = trained(tmp_path, job, 1)
    two = trained(tmp_path, job, 2)
    assert same_bytes(tmp_path, 2)
    n = 100
    interval = wilson(round(n * one[-1]["validation_accuracy"]), n)
    assert interval.low <= two[0][-1]["validation_accuracy"] <= interval.high


RECIPE = """
name: together
threads: 1
model: {family: hf_vit, source: {image_size: 8, patch_size: 4, num_channels: 1, hidden_size: 16,
        num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24}}
data: {use: digits}
steps:
  - {use: finetune, name: dense, schedule: {epochs: 2, lr: 2.0e-3, batch: 64}}
  - {use: optin, keep_macs: 0.8, samples: 8, batch: 8}
  - {use: finetune, name: again, schedule: {epochs: 1}, teacher: {step: dense}}
targets: [{use: onnx, precision: fp32}]
"""


def launched(recipe: Path, out: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    module = ["-m", "edgetl", "compress", "--recipe", str(recipe), "--out", str(out), "--json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, *module]
    return subprocess.run(command, check=False, timeout=300, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_recipe_on_two_processes_is_written_and_told_once(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    ended = launched(recipe, tmp_path / "run", 2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert set(json.loads(ended.stdout)["networks"]) == {"dense", "optin-0.8"}
    assert ended.stderr.count("dense on all: running") == 1
    found = sorted(path.name for path in (tmp_path / "run" / "steps").glob("[0-9]*"))
    assert found == ["00-source", "01-dense", "02-optin", "03-again"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    again = launched(recipe, tmp_path / "run", 2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("finished before") == 4


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("lr: 2.0e-3", "lr: 1.0e+30"))
    ended = launched(recipe, tmp_path / "run", 2)
    assert ended.returncode != 0
    assert "diverged" in ended.stderr
