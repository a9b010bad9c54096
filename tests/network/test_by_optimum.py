"""Which networks optimum's exporter takes; what it writes is compared in tests/targets/test_optimum.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.errors import BadHost, BadInput
from edgetl.network import by_optimum
from edgetl.network.edits import Keep
from edgetl.network.network import create, save
from edgetl.stages.export import export

LABELS = ("a", "b", "c")
FFN = (("layers.0.ffn.up.weight", 0), ("layers.0.ffn.up.bias", 0), ("layers.0.ffn.down.weight", 1))


@pytest.mark.parametrize("family", ["resnet_cifar", "bag"])
def test_a_network_of_our_own_is_refused(family: str, tmp_path: Path) -> None:
    net = create(family, {}, LABELS, 0)
    with pytest.raises(BadInput, match=f"{family} is no architecture of transformers"):
        by_optimum.to_onnx(net, tmp_path / "base.onnx")
    assert not list(tmp_path.iterdir())


def test_a_cut_network_is_refused(tmp_path: Path) -> None:
    net = create("hf_vit", {}, LABELS, 0).edit([Keep(FFN, (0, 1, 2))])
    with pytest.raises(BadInput, match="it is cut"):
        by_optimum.to_onnx(net, tmp_path / "base.onnx")
    assert not list(tmp_path.iterdir())


def test_without_optimum_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_optimum, "PACKAGE", "edgetl-no-such-package")
    save(create("hf_vit", {}, LABELS, 0), tmp_path / "network")
    with pytest.raises(BadHost, match="not installed"):
        export(tmp_path / "network", exporter="optimum")
    assert not (tmp_path / "network" / "bundles").exists()
