"""What goes wrong in training, and what is kept of it: exit codes, fixes, and the log beside the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.errors import BadInput, Diverged, EdgetlError
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.types import Json
from tests.stages.conftest import write_recipe

CNN = {"family": "resnet_cifar", "source": {"depth": 8, "channels": 4, "num_channels": 1, "image_size": 8}}


def made(tmp_path: Path, **changes: Json) -> Path:
    recipe = write_recipe(tmp_path / "recipe.yaml", **changes)
    compress(read(recipe), tmp_path / "run")
    return tmp_path / "run"


def fails(kind: type[EdgetlError], tmp_path: Path, **changes: Json) -> EdgetlError:
    with pytest.raises(kind) as caught:
        made(tmp_path, **changes)
    assert caught.value.fix
    return caught.value


def pictures(folder: Path, height: int, width: int, classes: int) -> dict[str, Json]:
    draw = np.random.default_rng(0)
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw.integers(0, 255, (height, width), np.uint8)).save(folder / f"class{k}" / f"{i}.png")
    return {"use": "image_folder", "root": str(folder), "size": [height, width], "channels": 1}


def test_a_loss_that_is_not_finite_exits_7_and_says_where(tmp_path):
    schedule = {"epochs": 3, "lr": 1e30, "warmup": 0}
    error = fails(Diverged, tmp_path, steps=[{"use": "finetune", "schedule": schedule}])
    assert error.code == 7
    assert "epoch 1" in error.problem
    assert "lr" in error.fix
    assert not list((tmp_path / "run" / "steps").glob("01-*/*/network.json"))


def test_data_of_one_class_exits_2(tmp_path):
    data = pictures(tmp_path / "data", 8, 8, 1)
    assert fails(BadInput, tmp_path, data=data, steps=[{"use": "finetune", "schedule": {"epochs": 1}}]).code == 2


@pytest.mark.parametrize("use", ["dist", "mi_alpha", "relations"])
def test_batches_of_one_sample_and_so_of_one_class_are_learnt_from(use, tmp_path):
    """A loss that compares the samples of a batch has nothing to compare, and still answers with a number."""
    teach = {"use": "finetune", "name": "again", "teacher": {"step": "dense"}, "losses": [{"use": use}]}
    schedule = {"epochs": 1, "batch": 1}
    dense = {"use": "finetune", "name": "dense", "schedule": {"epochs": 1, "batch": 64}}
    run = made(tmp_path, data__test=0.9, steps=[dense, {**teach, "schedule": schedule}])
    assert (run / "steps" / "02-again" / "all" / "network.json").is_file()


def test_a_quarter_turn_of_pictures_that_are_not_square_exits_2(tmp_path):
    model = {"family": "hf_vit", "source": {"image_size": [8, 16], "patch_size": 4, "num_channels": 1}}
    data = pictures(tmp_path / "data", 8, 16, 3)
    step = {"use": "lsskd", "losses": [{"use": "lsskd", "views": 4}], "schedule": {"epochs": 1}}
    error = fails(BadInput, tmp_path, model=model, data=data, steps=[step])
    assert error.code == 2


def test_a_mixture_that_a_loss_does_not_know_exits_2_before_anything_runs(tmp_path):
    step = {"use": "distill", "schedule": {"mix": {"op": "cutmix"}}, "losses": [{"use": "dkd"}]}
    with pytest.raises(EdgetlError, match="dkd") as caught:
        read(write_recipe(tmp_path / "recipe.yaml", steps=[{"use": "finetune"}, step]))
    assert caught.value.code == 2


def test_a_table_that_would_be_too_large_gives_way_to_a_snapshot_which_is_recorded(tmp_path):
    loss = {"use": "lsskd", "mode": "paper", "heads": "light", "table_mb": 0.01}
    step = {"use": "lsskd", "losses": [loss], "schedule": {"epochs": 2, "batch": 128}}
    run = made(tmp_path, model=CNN, steps=[step])
    told = json.loads((run / "steps" / "01-lsskd" / "all" / "training.json").read_text())
    assert told["facts"] == {"self_teacher": "snapshot"}
    assert len(told["epochs"]) == 2
    assert {"loss", "labels", "joint_labels", "validation_loss", "validation_accuracy"} <= set(told["epochs"][0])
