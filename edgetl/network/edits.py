"""Structural changes as data, and the only code that resizes a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import nn

from edgetl.errors import Refused
from edgetl.network.names import Live, live
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.network.family import Family, Group

FIX = "the edits do not belong to this network or were changed; make the network again"


@dataclass(frozen=True)
class Keep:
    """Keep these indices along the given axis of every named tensor."""

    tensors: tuple[tuple[str, int], ...]  # (canonical path, axis)
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Replace a place that has no unit left by the constant it then computes."""

    place: str  # canonical path of a module


@dataclass(frozen=True)
class MergeTokens:
    """Merge r tokens between the attention and the feed-forward network of a block."""

    layer: int  # index into Family.stages
    r: int  # at most half of the tokens that may merge


Edit: TypeAlias = Keep | Constant | MergeTokens


def apply(module: nn.Module, family: Family, edits: Sequence[Edit]) -> None:
    """Replay edits on an uncut or earlier cut module, in place and in order.

    Raises:
        Refused: an edit names no group of the network, or keeps units that are not there.

    """
    groups = list(family.units(module)) if edits else []
    known = list(groups)
    for edit in edits:
        if isinstance(edit, MergeTokens):
            _check_merge(family.tokens(module), edit)
            family.merge(module, edit.layer, edit.r)
            continue
        group = _left(groups, _group(known, edit))
        if group is None:  # it went with another place that became constant
            continue
        if isinstance(edit, Constant):
            family.constant(module, edit.place)
            # What is left of a group beside the constant is other slices: a bias in place of a layer.
            groups = list(family.units(module))
            known = [g for g in known if g.place != edit.place] + groups
        else:
            _check(group, edit.indices)
            _slice(live(family, module), Keep(group.tensors, edit.indices))
            groups[groups.index(group)] = replace(group, count=len(edit.indices) // group.width)
    family.resized(module)
    module.train(module.training)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def to_json(edits: Sequence[Edit]) -> Json:
    """Return edits as plain JSON data."""
    return [_to_json(edit) for edit in edits]


def from_json(data: Json) -> tuple[Edit, ...]:
    """Return the edits of `to_json`, from a file that nobody vouches for.

    Raises:
        Refused: an unknown kind or key, a wrong type, or indices that are not ascending.

    """
    if not isinstance(data, list):
        raise Refused("'edits' is not a list", fix=FIX)
    return tuple(_edit(item) for item in data)


def _to_json(edit: Edit) -> Json:
    match edit:
        case Constant(place):
            return {"edit": "constant", "place": place}
        case MergeTokens(layer, r):
            return {"edit": "merge_tokens", "layer": layer, "r": r}
        case Keep(tensors, indices):
            return {"edit": "keep", "tensors": [list(t) for t in tensors], "indices": list(indices)}


def _edit(item: Json) -> Edit:
    match item:
        case {"edit": "constant", "place": str(place), **rest} if not rest:
            return Constant(place)
        case {"edit": "keep", "tensors": list(tensors), "indices": list(indices), **rest} if not rest:
            return Keep(tuple(_slot(t) for t in tensors), _ascending(indices))
        case {"edit": "merge_tokens", "layer": layer, "r": r, **rest} if not rest:
            if type(layer) is int and type(r) is int and layer >= 0 and r >= 1:
                return MergeTokens(layer, r)
    raise Refused(f"unknown edit {str(item)[:80]}", fix=FIX)


def _slot(item: Json) -> tuple[str, int]:
    match item:
        case [str(path), int(axis)] if not isinstance(axis, bool) and axis >= 0:
            return path, axis
    raise Refused(f"an edit slices {str(item)[:80]}, which is no [path, axis]", fix=FIX)


def _ascending(indices: list[Json]) -> tuple[int, ...]:
    if not indices or any(type(i) is not int or i < 0 for i in indices):
        raise Refused("an edit keeps nothing, or indices that are no positive whole numbers", fix=FIX)
    if any(b <= a for a, b in pairwise(indices)):
        raise Refused("an edit's indices are not ascending", fix=FIX)
    return tuple(indices)


def _check_merge(tokens: Sequence[int], edit: MergeTokens) -> None:
    """Refuse a merge that the blocks have no tokens for, be it the one of a block behind."""
    if not 0 <= edit.layer < len(tokens) - 1:
        raise Refused(f"the network merges no tokens in block {edit.layer}", fix=FIX)
    if tokens[edit.layer] > tokens[edit.layer + 1]:
        raise Refused(f"block {edit.layer} merges tokens already", fix=FIX)
    left = [n - edit.r if i > edit.layer else n for i, n in enumerate(tokens)]
    if edit.r < 1 or any(2 * (n - after) > n for n, after in pairwise(left)):
        raise Refused(f"an edit merges {edit.r} tokens in block {edit.layer}, more than every second", fix=FIX)


def _group(groups: Sequence[Group], edit: Keep | Constant) -> Group:
    for group in groups:
        if edit.place == group.place if isinstance(edit, Constant) else edit.tensors == group.tensors:
            return group
    name = edit.place if isinstance(edit, Constant) else ", ".join(path for path, _ in edit.tensors[:2])
    raise Refused(f"the network has no units at {name[:120]}", fix=FIX)


def _left(groups: Sequence[Group], known: Group) -> Group | None:
    """Return a group as it is now."""
    return next((g for g in groups if g.gate == known.gate), None)


def _check(group: Group, indices: tuple[int, ...]) -> None:
    _ascending(list(indices))
    if indices[-1] >= group.count * group.width:
        raise Refused(f"{group.name} has {group.count} units; an edit keeps index {indices[-1]}", fix=FIX)
    units = indices[:: group.width]
    whole = [u + i for u in units for i in range(group.width)]
    if list(indices) != whole or any(u % group.width for u in units):
        raise Refused(f"an edit keeps parts of units of {group.name}", fix=FIX)


def _slice(names: Live, edit: Keep) -> None:
    for path, axis in edit.tensors:
        owner, attribute = names.owner(path)
        old = cast(torch.Tensor, getattr(owner, attribute))
        new = old.detach().index_select(axis, torch.tensor(edit.indices, device=old.device)).contiguous()
        setattr(owner, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if attribute == "weight":
            _sizes(owner)


def _sizes(owner: nn.Module) -> None:
    """Bring the size attributes of a layer in line with its tensors."""
    weight = cast(torch.Tensor, owner.weight)
    match owner:
        case nn.Linear():
            owner.out_features, owner.in_features = weight.shape
        case nn.Conv1d() | nn.Conv2d():
            depthwise = owner.groups == owner.in_channels and owner.groups > 1
            owner.out_channels = weight.shape[0]
            owner.groups = weight.shape[0] if depthwise else owner.groups
            owner.in_channels = weight.shape[1] * owner.groups
        case nn.LayerNorm():
            owner.normalized_shape = tuple(weight.shape)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            owner.num_features = weight.shape[0]
        case nn.Embedding():
            owner.num_embeddings, owner.embedding_dim = weight.shape
