"""Canonical names: what a weight is called whatever library version built the module or wrote the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from edgetl.network.family import Family, Layout


ROOT = "network"
"""The place of what no layer of the network does."""


@dataclass(frozen=True)
class Live:
    """A live module seen through canonical names; it stays valid while layers are replaced."""

    module: nn.Module
    layout: Layout

    def name(self, path: str) -> str:
        """Return the module's own name of a canonical path.

        Raises:
            KeyError: the family has no such path.

        """
        found = to_foreign(self.layout, path)
        if found is None:
            raise KeyError(path)
        return found

    def has(self, path: str) -> bool:
        """Return whether a canonical path names a layer or tensor of the module as it is now."""
        found = to_foreign(self.layout, path)
        if found is None:
            return False
        owner: nn.Module = self.module
        for part in found.split("."):
            child = getattr(owner, part, None)
            if child is None:
                return False
            owner = child
        return True

    def at(self, path: str) -> nn.Module:
        """Return the layer at a canonical path."""
        return self.module.get_submodule(self.name(path))

    def linear(self, path: str) -> nn.Linear:
        """Return the linear layer at a canonical path."""
        layer = self.at(path)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{path} is a {type(layer).__name__}, not a Linear")
        return layer

    def put(self, path: str, layer: nn.Module) -> None:
        """Replace the layer at a canonical path."""
        put(self.module, self.name(path), layer)

    def owner(self, path: str) -> tuple[nn.Module, str]:
        """Return the layer that holds the tensor at a canonical path, and the tensor's attribute name."""
        parent, _, attribute = self.name(path).rpartition(".")
        return self.module.get_submodule(parent), attribute

    def state(self) -> dict[str, Tensor]:
        """Return the state dict under canonical names, sorted; the tensors are shared with the module."""
        named = {to_canonical(self.layout, k) or k: v for k, v in self.module.state_dict().items()}
        return dict(sorted(named.items()))


def live(family: Family, module: nn.Module) -> Live:
    """Return the module seen through the first layout of its family that names every one of its weights.

    Raises:
        KeyError: no layout fits; the family misses the names of this library version.

    """
    keys = list(module.state_dict())
    for layout in family.names:
        if all(to_canonical(layout, key) is not None for key in keys):
            return Live(module, layout)
    raise KeyError(f"{family.name} has no layout for a module with {keys[0]}")


def places(family: Family, module: nn.Module) -> dict[str, str]:
    """Return the canonical place of every submodule, by the module's own name for it.

    A layer with weights is called as they are; one without, such as an activation, after its parent and its own
    attribute. What holds the blocks among other things is the network.
    """
    layout, stages = live(family, module).layout, family.stages(module)
    weights = {key: to_canonical(layout, key) or key for key in module.state_dict()}
    found = {"": ROOT}
    for name in (name for name, _ in module.named_modules() if name):
        parent, _, attribute = name.rpartition(".")
        inside = [canonical for key, canonical in weights.items() if key.startswith(f"{name}.")]
        shared = _shared(inside)
        if not shared and any(path.startswith(f"{stage}.") for path in inside for stage in stages):
            found[name] = found[parent]
        else:
            above = "" if found[parent] == ROOT else f"{found[parent]}."
            found[name] = shared or f"{above}{attribute}"
    return found


def _shared(weights: Sequence[str]) -> str:
    """Return the dotted place that all these weights lie in."""
    parts = zip(*(path.split(".")[:-1] for path in weights), strict=False)  # to the end of the shortest
    return ".".join(same[0] for same in takewhile(lambda level: len(set(level)) == 1, parts))


def put(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer that the module calls `name`."""
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)


def translate(layouts: tuple[Layout, ...], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors under canonical names and the foreign names that no layout knows.

    The layout that knows most names wins; names that it ignores are dropped.
    """
    best: tuple[dict[str, Tensor], list[str]] | None = None
    for layout in layouts:
        known: dict[str, Tensor] = {}
        unknown = []
        for name, tensor in tensors.items():
            if any(fnmatch(name, pattern) for pattern in layout.ignored):
                continue
            canonical = to_canonical(layout, name)
            if canonical is None:
                unknown.append(name)
            else:
                known[canonical] = tensor
        if best is None or len(known) > len(best[0]):
            best = known, unknown
    return best or ({}, list(tensors))


def to_canonical(layout: Layout, name: str) -> str | None:
    """Return the canonical form of a foreign name, or None where no pair covers it."""
    return _match(_rules(layout, 1), name)


def to_foreign(layout: Layout, name: str) -> str | None:
    """Return the foreign form of a canonical name, or None where no pair covers it."""
    return _match(_rules(layout, 0), name)


def _match(rules: tuple[tuple[re.Pattern[str], str], ...], name: str) -> str | None:
    for pattern, template in rules:
        if found := pattern.match(name):
            return template.format(*found.groups()) + name[found.end() :]
    return None


@lru_cache(maxsize=64)
def _rules(layout: Layout, side: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return (pattern of one side, template of the other), longest first, so that the closest pair wins."""
    pairs = sorted(layout.pairs, key=lambda pair: -len(pair[side]))
    return tuple((re.compile(re.escape(p[side]).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), p[1 - side]) for p in pairs)
