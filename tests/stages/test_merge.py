"""Adapters trained elsewhere: merged they answer as peft does, and what `merge` writes is exported and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.errors import BadInput
from edgetl.network import network as networks
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.merge import merge
from edgetl.stages.verify import verify
from tests.stages.conftest import SIZES, Write

LABELS = tuple(str(i) for i in range(10))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and an adapter of it, trained one step with peft, and what both answer together."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = ViTConfig(**SIZES, id2label=names, label2id={v: k for k, v in names.items()})
    module = ViTForImageClassification(config)
    module.save_pretrained(folder / "base")
    linear = {n.rpartition(".")[2] for n, m in module.vit.named_modules() if isinstance(m, torch.nn.Linear)}
    adapted = get_peft_model(module, LoraConfig(r=2, target_modules=sorted(linear), modules_to_save=["classifier"]))
    adapted.train()
    pixels = torch.rand(16, 1, 8, 8)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        torch.nn.functional.cross_entropy(adapted(pixels).logits, torch.arange(16) % 10).backward()
        optimizer.step()
    adapted.eval().save_pretrained(folder / "adapter")
    with torch.no_grad():
        answers = adapted(pixels).logits
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(pixels).logits, answers, atol=1e-3), "the adapter must do something"
    np.savez(folder / "answers.npz", x=pixels.numpy(), y=answers.numpy())
    return folder


@pytest.fixture(scope="module")
def merged(elsewhere: Path) -> Path:
    return merge(str(elsewhere / "base"), [elsewhere / "adapter"], elsewhere / "merged")


def test_merged_answers_are_those_of_peft(elsewhere: Path, merged: Path) -> None:
    answers = np.load(elsewhere / "answers.npz")
    net = networks.load(merged)
    assert net.labels == LABELS
    with torch.no_grad():
        found = net.logits({"pixel_values": torch.from_numpy(answers["x"])}).numpy()
    np.testing.assert_allclose(found, answers["y"], rtol=1e-4, atol=1e-5)


def test_a_merged_network_is_exported_verified_and_a_source(merged: Path, tiny: Write, tmp_path: Path) -> None:
    [bundle] = export(merged)
    assert verify(bundle).agreement.value == 1.0
    recipe = tiny(
        model={"family": "hf_vit", "source": str(merged)},
        data={"use": "digits"},
        steps=[{"use": "finetune", "schedule": {"epochs": 1}}],
    )
    made = compress(read(recipe), tmp_path / "run")
    assert networks.load(made["finetune"]).facts["head"] == "kept"


def test_a_folder_that_is_there_is_not_written_over(elsewhere: Path, merged: Path) -> None:
    with pytest.raises(BadInput, match="is there already"):
        merge(str(elsewhere / "base"), [elsewhere / "adapter"], merged)
    with pytest.raises(BadInput):
        merge(str(elsewhere / "base"), [elsewhere / "nothing"], elsewhere / "new")
    assert not (elsewhere / "new").exists()
