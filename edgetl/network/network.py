"""A torch module with its family, configuration, labels and edits; saved as edits + safetensors."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgetl import plugins, store
from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.network import edits as editing
from edgetl.network import saved, source
from edgetl.network.names import Live, live, translate
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.network.edits import Edit
    from edgetl.network.family import Family

LOG = logging.getLogger("edgetl")

OTHER = "give the folder as it was published, or the family that this checkpoint was made with"


@dataclass(frozen=True)
class Network:
    """Plain between steps: rebuilding from config, edits and weights gives bit-equal outputs.

    The module may be trained in place on a copy; take `dataclasses.replace(net)` afterwards, because a digest
    that was read once is kept.
    """

    module: nn.Module
    family: Family
    config: Json
    labels: tuple[str, ...]
    edits: tuple[Edit, ...] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)  # head kept|new, source, licence, prep; not in the digest

    @cached_property
    def digest(self) -> str:
        """The sha256 over family, configuration, edits, labels and weights, 64 hex digits."""
        text = store.digest([self.family.name, self.config, editing.to_json(self.edits), list(self.labels)])
        total = hashlib.sha256(text.encode())
        for name, tensor in self.state().items():
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def names(self) -> Live:
        """Return the module seen through canonical names."""
        return live(self.family, self.module)

    def at(self, path: str) -> nn.Module:
        """Return the layer at a canonical path."""
        return self.names().at(path)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer; other keys of `inputs` are ignored."""
        return self.family.logits(self.module, inputs)

    def state(self) -> dict[str, Tensor]:
        """Return all weights under canonical names, sorted: detached, contiguous, on the CPU."""
        return {k: v.detach().cpu().contiguous() for k, v in self.names().state().items()}

    def copy(self) -> Network:
        """Return the same network with a module of its own."""
        return replace(self, module=copy.deepcopy(self.module))

    def edit(self, edits: Sequence[Edit]) -> Network:
        """Return a fresh copy with these edits applied after the earlier ones.

        Raises:
            Refused: an edit does not fit this network.

        """
        fresh = self.copy()
        editing.apply(fresh.module, self.family, edits)
        return replace(fresh, edits=(*self.edits, *edits))


def create(family: str, where: str | Mapping[str, Json], labels: Sequence[str], seed: int) -> Network:
    """Return a network from a folder, a hub id, a saved network, or sizes for random weights.

    The head is kept where the source's labels are the same, and that of a bare file of weights, which names none, where
    it has as many; otherwise it is new, drawn from the seed.

    Raises:
        BadInput: the source is missing, incomplete or of another family, or a size is impossible.
        Refused: the source is unsafe or damaged.

    """
    _distinct(labels)
    kind: Family = plugins.find("families", family)
    if isinstance(where, str):
        folder = source.locate(where)
        if saved.is_saved(folder):
            return _again(kind, folder, tuple(labels), seed)
    config = kind.config(where, len(labels))
    module = _build(kind, config, seed)
    facts: dict[str, Json] = {"head": "new", "source": "random", "licence": None}
    if isinstance(where, str):
        bare = source.is_weights(folder)
        theirs = None if bare else source.file_labels(source.read_config(folder))
        found, unknown = translate(kind.names, source.read_weights(folder))
        if unknown:
            raise BadInput(f"{where} holds weights that {family} has no place for: {unknown[0]}", fix=OTHER)
        kept = _fill(kind, module, found, keep=theirs in (None, tuple(labels)))
        if kept and bare:
            LOG.warning("%s names no labels: its classifier is taken to answer in the order of yours", _short(where))
        facts = {"head": "kept" if kept else "new", "source": _short(where), "licence": source.licence(folder)}
    facts["prep"] = saved.prep_json(kind.prep(where, config))
    return Network(module, kind, config, tuple(labels), facts=facts)


def _again(kind: Family, folder: Path, labels: tuple[str, ...], seed: int) -> Network:
    """Return a saved network, with a new head where the labels differ."""
    net = load(folder)
    if net.family.name != kind.name:
        raise BadInput(f"{folder} holds a network of family {net.family.name}", fix=f"write family: {net.family.name}")
    if net.labels == labels:
        return replace(net, facts={**net.facts, "head": "kept"})
    config = kind.config(net.config, len(labels))
    module = _build(kind, config, seed)
    editing.apply(module, kind, net.edits)
    _fill(kind, module, net.state(), keep=False)
    return Network(module, kind, config, labels, net.edits, {**net.facts, "head": "new"})


def _build(kind: Family, config: Json, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.build(config)


def _fill(kind: Family, module: nn.Module, found: Mapping[str, Tensor], *, keep: bool) -> bool:
    """Copy canonical weights into the module and return whether the head came with them."""
    mine = live(kind, module).state()
    head = {k for k in mine if k.startswith(f"{kind.head(module)}.")}
    # How often a norm has seen a batch decides nothing, and not every file says it.
    body = {k for k in mine.keys() - head if not k.endswith(".num_batches_tracked")}
    if missing := sorted(body - found.keys()):
        raise BadInput(f"the source lacks {len(missing)} of {len(body)} weights, {missing[0]} among them", fix=OTHER)
    # A surplus pooler or head is passed over; a surplus block means that the configuration is another network's.
    wrong = [k for k in sorted(body) if found[k].shape != mine[k].shape]
    wrong += sorted(k for k in found.keys() - mine.keys() if k.startswith("layers."))
    if wrong:
        raise BadInput(f"the source's {wrong[0]} does not fit the configuration beside it", fix=OTHER)
    keep = keep and all(k in found and found[k].shape == mine[k].shape for k in head)
    with torch.no_grad():
        for name in [*body, *(head if keep else ())]:
            mine[name].copy_(found[name])
    return keep


def save(net: Network, folder: Path, extra: Mapping[str, Json] | None = None, assets: Path | None = None) -> None:
    """Write a network folder that is a valid source by itself; `extra` stands in network.json under its own keys.

    The tokenizer that the network's weights want is copied beside them, or tokenizer.json of the folder `assets`.

    Raises:
        OutOfResources: the disk is full.

    """
    prep = dict(net.facts.get("prep") or {})
    tokenizer = assets / saved.TOKENIZER if assets is not None else prep.get("tokenizer")
    if tokenizer is not None:
        prep["tokenizer"] = saved.TOKENIZER
    header = {
        **(extra or {}),
        "family": net.family.name,
        "config": net.config,
        "labels": list(net.labels),
        "edits": editing.to_json(net.edits),
        "digest": net.digest,
        "facts": {**net.facts, "prep": prep},
    }
    saved.write(folder, header, net.state(), Path(tokenizer) if tokenizer is not None else None)


def load(folder: Path) -> Network:
    """Return the network of a saved folder; its source is never opened again.

    Raises:
        Refused: a file is missing, changed or malformed, or its parts do not fit each other.

    """
    header, tensors = saved.read(folder)
    if header["family"] not in plugins.names("families"):
        raise Refused(f"{folder}: no family '{header['family'][:80]}' here", fix="give its folder with --plugins DIR")
    kind: Family = plugins.find("families", header["family"])
    config, edits = header["config"], editing.from_json(header["edits"])
    _known_config(kind, config, len(header["labels"]), folder)
    with torch.device("meta"):  # sizes are compared before a forged configuration can ask for memory
        planned = {k: (v.shape, v.dtype) for k, v in _rebuilt(kind, config, edits).state().items()}
    if planned != {k: (v.shape, v.dtype) for k, v in tensors.items()}:
        raise Refused(f"{folder}: weights and edits do not fit each other", fix=saved.AGAIN)
    names = _rebuilt(kind, config, edits)
    with torch.no_grad():
        for name, tensor in names.state().items():
            tensor.copy_(tensors[name])
    facts = dict(header["facts"])
    facts["prep"] = saved.prep_json(saved.prep_from_json(facts.get("prep", {}), folder))
    net = Network(names.module, kind, config, tuple(header["labels"]), edits, facts)
    if net.digest != header["digest"]:
        raise Refused(f"{folder}: labels, edits or configuration were changed: its digest differs", fix=saved.AGAIN)
    return net


def _rebuilt(kind: Family, config: Json, edits: Sequence[Edit]) -> Live:
    module = _build(kind, config, seed=0)
    editing.apply(module, kind, edits)
    return live(kind, module)


def _known_config(kind: Family, config: Json, labels: int, folder: Path) -> None:
    try:
        same = kind.config(config, labels) == config
    except BadInput as error:
        raise Refused(f"{folder}: {error.problem}", fix=saved.AGAIN) from None
    if not same:
        raise Refused(f"{folder}: its configuration is incomplete or was changed", fix=saved.AGAIN)


class NotPlain(EdgetlError):
    """A step left something behind that a saved network cannot hold: a fault of the step, not of the user."""

    code = 1


def check_plain(net: Network, folder: Path) -> None:
    """Compare a network with what its saved folder rebuilds.

    Raises:
        NotPlain: module classes, state, outputs, gradients, mode or hooks differ.

    """
    again = load(folder)
    fault = _fault(net, again)
    if fault is not None:
        raise NotPlain(f"the step's network is not plain: {fault}", fix="this is a bug in the step; please report it")


def _fault(net: Network, again: Network) -> str | None:
    mine, theirs = ([(n, type(m)) for n, m in x.module.named_modules()] for x in (net, again))
    if mine != theirs:
        return f"its layers differ from the rebuilt ones, {(set(mine) ^ set(theirs)).pop()[0] or 'in order'} first"
    if list(net.module.state_dict()) != list(again.module.state_dict()):
        return "its state has other keys than the rebuilt one"
    if any(m.training for m in net.module.modules()):
        return "it is in training mode"
    if frozen := [n for n, p in net.module.named_parameters() if not p.requires_grad]:
        return f"{frozen[0]} is frozen"
    if hooked := [n for n, m in net.module.named_modules() if _hooked(m)]:
        return f"{hooked[0] or 'the module'} has a hook"
    with torch.no_grad():
        inputs = net.family.example(net.config, 2)
        device = next(net.module.parameters()).device
        answer = net.logits({k: v.to(device) for k, v in inputs.items()}).cpu()
        equal = device.type != "cpu" or torch.equal(answer, again.logits(inputs))
    return None if equal else "its outputs differ from the rebuilt ones"


def _hooked(layer: nn.Module) -> bool:
    # torch offers no public way to ask for hooks
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _distinct(labels: Sequence[str]) -> None:
    if repeated := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise BadInput(f"the label '{repeated[0]}' is given twice", fix="name every class once")


def _short(where: str) -> str:
    """Return a hub id as it is and of a path only the last part, so that no folder of this host is written down."""
    return Path(where).expanduser().resolve().name if Path(where).expanduser().exists() else where
