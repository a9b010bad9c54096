from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgetl import plugins
from edgetl.explain.onnx_graph import read_graph
from edgetl.network.names import ROOT, live, places
from edgetl.network.network import Network, create
from edgetl.network.to_onnx import node_costs, to_onnx

pytestmark = pytest.mark.xdist_group("node_names")  # what the fixtures make is made once


@pytest.fixture(scope="module", params=["hf_vit", "hf_bert"])
def net(request: pytest.FixtureRequest) -> Network:
    return create(request.param, {"num_hidden_layers": 2}, ["a", "b"], 0)


@pytest.fixture(scope="module")
def file(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder of mine") / "base.onnx"
    to_onnx(net, path)
    return path


def test_every_node_tells_its_torch_module(net: Network, file: Path) -> None:
    graph = read_graph(file.read_bytes())
    known = set(places(net.family, net.module).values())
    modules = [name.rpartition("/")[0] for name in (node.name for node in graph.nodes)]
    assert set(modules) <= known
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    assert graph.modules() == {v: m for m, n in zip(modules, graph.nodes, strict=True) for v in n.outputs}
    matrices = {node.name for node in graph.nodes if node.op in ("MatMul", "Gemm")}
    for path in (*net.family.adapted(net.module), net.family.head(net.module)):
        assert matrices & {f"{path}/MatMul", f"{path}/Gemm"}, path
    costs = {cost["name"] for cost in node_costs(file, {"batch": 1, "tokens": 16})}
    assert {"layers.0.attn.q/MatMul", "layers.1.ffn.down/MatMul", "head/Gemm"} <= costs


def test_names_hold_nothing_of_the_library_or_the_folder(file: Path) -> None:
    model = onnx.load(file)
    assert all(re.fullmatch(r"[A-Za-z_][\w.]*/[A-Z]\w*", node.name) for node in model.graph.node)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    data = file.read_bytes()
    for secret in (b"a folder of mine", b"site-packages", b"edgetl/network", str(Path.home()).encode() + b"/"):
        assert secret not in data


def test_a_module_is_called_as_its_weights_are(net: Network) -> None:
    named, names = places(net.family, net.module), live(net.family, net.module)
    for layer, module in net.module.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
            assert names.at(named[layer]) is module or names.name(f"{named[layer]}.weight") == f"{layer}.weight"
    assert named[""] == ROOT
    assert {f"layers.{i}" for i in range(2)} <= set(named.values())


@pytest.mark.parametrize("name", plugins.names("families"))
def test_every_family_has_places_for_its_blocks(name: str) -> None:
    family = plugins.find("families", name)
    config = family.config({}, 2)
    with torch.device("meta"):
        module = family.build(config)
    named = {f"{place}." for place in places(family, module).values()}
    assert all(any(place.startswith(f"{stage}.") for place in named) for stage in family.stages(module))
    assert f"{family.head(module)}." in named


def test_the_file_does_not_depend_on_the_folder(net: Network, file: Path, tmp_path: Path) -> None:
    to_onnx(net, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()
