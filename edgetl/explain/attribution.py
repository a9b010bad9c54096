"""Which torch module, and which node of the file, a node that the runtime fused stands for. [no torch]

A runtime gives what it fuses a name of its own. What it computes keeps its name, so a fused node stands for all that
leads to its value from the values of other nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgetl.explain.onnx_graph import Graph, Node

HEAVY = ("Conv", "MatMul", "Gemm", "ConvInteger", "MatMulInteger", "MatMulNBits")
"""Operators whose work is most of what they are fused with."""

REORDERS = ("ReorderInput", "ReorderOutput")
"""Changes of layout, which the runtime puts around convolutions."""

_ADDED = re.compile(r"(_token_\d+|_nchwc|_quant|/duplicated|/MatMulScaleFusion/?)+$")
"""What ONNX Runtime puts behind the names of nodes and values that it derives others from."""


@dataclass(frozen=True)
class Origin:
    """What a node of the optimised graph comes from."""

    module: str  # "" where the file does not say
    node: Node | None  # the heaviest node of the file that it stands for; None: the runtime put it in


def origins(file: Graph, optimised: Graph) -> dict[str, Origin]:
    """Return the origin of every node of the runtime's optimised graph, by its name."""
    named = {node.name: node for node in file.nodes}
    producers, modules = file.producers(), file.modules()
    ends = {node.name: _end(node, producers, named) for node in optimised.nodes}
    borders = {end for end in ends.values() if end}
    found: dict[str, Origin] = {}
    after: dict[str, str] = {}  # the module behind every value of the optimised graph so far
    for node in optimised.nodes:
        end = ends[node.name]
        heaviest = _heaviest(end, borders, producers) if end else None
        module = modules[heaviest.outputs[0]] if heaviest else next((after[i] for i in node.inputs if after.get(i)), "")
        found[node.name] = Origin(module, None if node.op in REORDERS else heaviest)
        after |= dict.fromkeys(node.outputs, module)
    return found


def _end(node: Node, producers: Mapping[str, Node], named: Mapping[str, Node]) -> str | None:
    """Return the last value of the file that a node computes."""
    for value in (*node.outputs, _ADDED.sub("", node.name)):
        if value in producers:
            return value
    for name in (node.name, _ADDED.sub("", node.name)):
        if name in named:
            return named[name].outputs[0]
    return None


def _heaviest(end: str, borders: set[str], producers: Mapping[str, Node]) -> Node:
    """Return the first heavy node on the way back from a value to those of other nodes, else its own."""
    waiting, passed = [end], {end}
    while waiting:
        node = producers[waiting.pop(0)]
        if node.op in HEAVY:
            return node
        before = [name for name in node.inputs if name in producers and name not in borders | passed]
        passed.update(before)
        waiting += before
    return producers[end]
