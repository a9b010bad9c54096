"""A learngene: few sets of block tensors that expand into a network of any depth, in a small file of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from edgetl import plugins, store
from edgetl.errors import BadInput, Refused
from edgetl.families._transformer import Transformer
from edgetl.methods.tleg.expansion import CONVENTIONS, Sharing, combined
from edgetl.network import saved
from edgetl.network.family import Family
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.types import Json

SCHEMA_VERSION = 1
HEADER = "learngene.json"
WEIGHTS = "learngene.safetensors"
DEPTH = "num_hidden_layers"
"""What a family's configuration calls the number of blocks."""

AGAIN = "learn it again, or copy the whole folder again"

_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Learngene:
    """Tensors by canonical name: `layers.k.*` are those of set k, the others are every network's own.

    Its size depends on the width of the network and the number of sets, and on no depth.
    """

    family: Family
    config: Json  # complete; its depth is that of the network that it was learnt from
    labels: tuple[str, ...]
    sharing: Sharing
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Json] = field(default_factory=dict)  # source, licence, prep

    @property
    def depth(self) -> int:
        """Return the depth of the network that it was learnt from."""
        return int(self.config[DEPTH])

    @property
    def size(self) -> int:
        """Return how many numbers it holds."""
        return sum(t.numel() for t in self.tensors.values())

    def blocks(self, depth: int, tables: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the tensors of all blocks of a network of this depth; `tables` gives other coefficients by kind."""
        sets, rows = by_kind(self.tensors), self.sharing.coefficients(depth)
        found: dict[str, Tensor] = {}
        for kind, tensors in sets.items():
            every = combined(tensors, rows if tables is None else tables[kind])
            found |= {f"layers.{i}.{kind}": every[i] for i in range(depth)}
        return found

    def save(self, folder: Path) -> None:
        """Write learngene.safetensors, then learngene.json, which holds its sha256.

        Raises:
            OutOfResources: the disk is full.

        """
        (folder / HEADER).unlink(missing_ok=True)
        data = save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in self.tensors.items()})
        store.write_bytes(folder / WEIGHTS, data)
        prep = dict(self.facts.get("prep") or {})
        header: dict[str, Json] = {
            "schema_version": SCHEMA_VERSION,
            "convention": self.sharing.convention,
            "sets": self.sharing.sets,
            "family": self.family.name,
            "config": self.config,
            "labels": list(self.labels),
            "facts": {**self.facts, "prep": prep},
            "weights": _recorded(WEIGHTS, data),
        }
        if "tokenizer" in prep:
            text = Path(prep["tokenizer"]).read_bytes()
            prep["tokenizer"] = saved.TOKENIZER
            store.write_bytes(folder / saved.TOKENIZER, text)
            header["tokenizer"] = _recorded(saved.TOKENIZER, text)
        store.write_json(folder / HEADER, {**header, saved.SEAL: store.digest(header)})


def by_kind(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return the tensors of all blocks, in order, by their name inside a block, such as "attn.q.weight"."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.fullmatch(name):
            found.setdefault(match[2], {})[int(match[1])] = tensor
    return {kind: [blocks[i] for i in sorted(blocks)] for kind, blocks in found.items()}


def outer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors outside of the blocks."""
    return {name: tensor for name, tensor in tensors.items() if not _BLOCK.fullmatch(name)}


def expand(gene: Learngene, depth: int, tables: Mapping[str, Tensor] | None = None) -> Network:
    """Return a plain network of a depth, whose blocks share nothing any more.

    Raises:
        BadInput: the depth is below 1, or more than the family can have.

    """
    if depth < 1:
        raise BadInput(f"a network of {depth} blocks cannot be expanded", fix="give a depth of 1 or more")
    config = gene.family.config({**gene.config, DEPTH: depth}, len(gene.labels))
    return filled(gene, config, {**outer(gene.tensors), **gene.blocks(depth, tables)})


def filled(gene: Learngene, config: Json, tensors: Mapping[str, Tensor]) -> Network:
    """Return the network of a configuration with these weights, all of them."""
    with torch.random.fork_rng(devices=[]):
        module = gene.family.build(config)
    state = live(gene.family, module).state()
    if odd := sorted(state.keys() ^ tensors.keys()):
        raise Refused(f"the learngene's tensors are not those of its network: {odd[0]}", fix=AGAIN)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])
    return Network(module, gene.family, config, gene.labels, facts={"head": "kept", **gene.facts})


def load(folder: Path) -> Learngene:
    """Return a saved learngene.

    Raises:
        BadInput: there is none.
        Refused: a file is missing, changed or malformed, or its convention is not one of ours.

    """
    header = read_header(folder)
    data = _checked(folder, header, "weights", WEIGHTS)
    if "tokenizer" in header:
        _checked(folder, header, "tokenizer", saved.TOKENIZER)
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise Refused(f"{folder / WEIGHTS} is damaged ({error})", fix=AGAIN) from None
    form = next(f for f, name in CONVENTIONS.items() if name == header["convention"])
    family: Family = plugins.find("families", header["family"])
    labels = tuple(header["labels"])
    gene = Learngene(family, header["config"], labels, Sharing(form, header["sets"]), tensors, _facts(header, folder))
    _check_shapes(gene, folder)
    return gene


def read_header(folder: Path) -> dict[str, Json]:
    """Return learngene.json of a folder, whole and of a version and convention of ours.

    Raises:
        BadInput: there is none.
        Refused: it is malformed, changed, of a later version or of another convention.

    """
    path = folder / HEADER
    if not path.is_file():
        raise BadInput(f"{folder} holds no learngene: it has no {HEADER}", fix="give the folder that `tleg` wrote")
    header = saved.read_versioned(path, SCHEMA_VERSION, Refused(f"{path} is no learngene", fix=AGAIN))
    if header.get("convention") not in CONVENTIONS.values():
        known = ", ".join(CONVENTIONS.values())
        problem = f"{path} has the convention {str(header.get('convention'))[:40]!r}, and edgetl expands {known}"
        raise Refused(problem, fix="expand it with the edgetl that wrote it, or learn it again")
    if not saved.sealed(header):
        raise Refused(f"{path} was changed after it was written", fix=AGAIN)
    _check_types(header, path)
    return header


def _check_types(header: Mapping[str, Json], path: Path) -> None:
    kinds = {"sets": int, "family": str, "config": dict, "labels": list, "facts": dict, "weights": dict}
    wrong = next((k for k, kind in kinds.items() if not isinstance(header.get(k), kind)), None)
    if wrong or not all(isinstance(label, str) for label in header["labels"]):
        raise Refused(f"{path}: '{wrong or 'labels'}' is missing or of a wrong type", fix=AGAIN)
    if header["family"] not in plugins.names("families"):
        raise Refused(f"{path}: no family '{header['family'][:80]}' here", fix="give its folder with --plugins DIR")


def _facts(header: Mapping[str, Json], folder: Path) -> dict[str, Json]:
    prep = saved.prep_from_json(header["facts"].get("prep", {}), folder)
    return {**header["facts"], "prep": saved.prep_json(prep)}


def _check_shapes(gene: Learngene, folder: Path) -> None:
    """Compare names and shapes with those of the family before a forged configuration can ask for memory."""
    fault = Refused(f"{folder}: tensors and configuration do not fit each other", fix=AGAIN)
    try:
        config = gene.family.config({**gene.config, DEPTH: gene.sharing.sets}, len(gene.labels))
        whole = gene.family.config(gene.config, len(gene.labels)) == gene.config
    except BadInput as error:
        raise Refused(f"{folder}: {error.problem}", fix=AGAIN) from None
    if not whole or not isinstance(gene.family, Transformer):
        raise fault
    with torch.device("meta"):
        planned = {k: (v.shape, v.dtype) for k, v in live(gene.family, gene.family.build(config)).state().items()}
    if planned != {k: (v.shape, v.dtype) for k, v in gene.tensors.items()}:
        raise fault


def _recorded(name: str, data: bytes) -> Json:
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def _checked(folder: Path, header: Mapping[str, Json], key: str, name: str) -> bytes:
    """Return a file's bytes once they have the recorded hash; the name is ours, never the header's."""
    path = folder / name
    data = path.read_bytes() if path.is_file() else None
    if data is None or header[key] != _recorded(name, data):
        raise Refused(f"{path} is missing, or not the file that {HEADER} names: its sha256 differs", fix=AGAIN)
    return data


def relabelled(gene: Learngene, labels: Sequence[str], seed: int) -> Learngene:
    """Return a learngene for these labels: with its own head where they are the same, else with a new one."""
    if gene.labels == tuple(labels):
        return gene
    config = gene.family.config(gene.config, len(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = gene.family.build({**config, DEPTH: 1})
    head = gene.family.head(module)
    fresh = {k: v.detach() for k, v in live(gene.family, module).state().items() if k.startswith(f"{head}.")}
    facts = {**gene.facts, "head": "new"}
    return replace(gene, config=config, labels=tuple(labels), tensors={**gene.tensors, **fresh}, facts=facts)
