"""The groups of units that can be cut."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.errors import BadInput
from edgetl.network.edits import MergeTokens
from edgetl.network.family import Group
from edgetl.network.network import Network

CUT = ("heads", "neurons", "channels")


def groups_of(net: Network) -> tuple[Group, ...]:
    """Return the groups of heads, neurons and channels; a layer that lost all has none."""
    return tuple(g for g in net.family.units(net.module) if g.kind in CUT)


def check(step: str, net: Network, groups: Sequence[Group]) -> None:
    """Check that a network has units which can be scored.

    Raises:
        BadInput: it has none, or merges tokens already.

    """
    if not groups:
        raise BadInput(
            f"{step}: family '{net.family.name}' has no heads, neurons or channels to cut",
            fix="use another method for this backbone, or a family such as hf_vit or hf_resnet",
        )
    if any(isinstance(edit, MergeTokens) for edit in net.edits):
        raise BadInput(
            f"{step}: the network merges tokens already, and units behind a merge are not scored",
            fix="cut heads and neurons in the step that merges tokens, or before it",
        )
