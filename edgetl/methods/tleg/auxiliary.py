"""The auxiliary network: blocks that follow from the sets of a learngene in every forward, so that these are trained.

Nothing of a block is a parameter of its own: gradients reach the sets and the tensors outside of the blocks only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgetl.losses._places import valid
from edgetl.methods.tleg.expansion import combined
from edgetl.methods.tleg.learngene import DEPTH, Learngene, by_kind, filled
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.train.course import Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features, tapped


@dataclass
class Passage:
    """What the blocks gave when an auxiliary network ran last, for the loss that compares it: L tensors (B, N, D)."""

    outputs: tuple[Tensor, ...] = ()


class Shape:
    """A network without weights, what it calls the tensors of its blocks, and what these are made of."""

    def __init__(self, gene: Learngene, depth: int) -> None:
        config = gene.family.config({**gene.config, DEPTH: depth}, len(gene.labels))
        with torch.device("meta"):
            self.module = gene.family.build(config)
        names = live(gene.family, self.module)
        kinds = by_kind(gene.tensors)
        self.names = {kind: [names.name(f"layers.{i}.{kind}") for i in range(depth)] for kind in kinds}
        self.coefficients = gene.sharing.coefficients(depth)
        self.layers = {f"{i}": names.at(place) for i, place in enumerate(gene.family.stages(self.module))}


class Auxiliary(nn.Module):
    """A network of several depths: one drawn for every training batch in each process, the deepest in evaluation."""

    def __init__(
        self, gene: Learngene, chances: Mapping[int, float], tables: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self._gene, self._tables = gene, tables
        config = gene.family.config({**gene.config, DEPTH: gene.sharing.sets}, len(gene.labels))
        self.sets = filled(gene, config, gene.tensors).module
        names = live(gene.family, self.sets)
        counts = {kind: len(tensors) for kind, tensors in by_kind(gene.tensors).items()}
        self._names = {kind: [names.name(f"layers.{k}.{kind}") for k in range(n)] for kind, n in counts.items()}
        self._depths, self._chances = tuple(chances), torch.tensor([*chances.values()])
        # plain dict: a shape holds no weights, and is no part of what is trained or saved
        self._shapes = {depth: Shape(gene, depth) for depth in chances}
        self.passage = Passage()

    def forward(self, **inputs: Tensor) -> object:
        """Return what a network of the family returns for these inputs."""
        depth = self._depths[int(torch.multinomial(self._chances, 1))] if self.training else max(self._depths)
        shape = self._shapes[depth]
        shape.module.train(self.training)
        with tapped(shape.layers) as features:
            answer = functional_call(shape.module, self.tensors(depth), args=(), kwargs=inputs, strict=True)
        self.passage.outputs = tuple(features[place] for place in shape.layers)
        return answer

    def tensors(self, depth: int) -> dict[str, Tensor]:
        """Return all tensors of a network of a depth, by the names that it has for them."""
        own = {**dict(self.sets.named_parameters()), **dict(self.sets.named_buffers())}
        found: dict[str, Tensor] = {}
        for kind, names in self._names.items():
            sets = [own.pop(name) for name in names]
            every = combined(sets, self.table(kind, depth).to(sets[0].device))
            found |= dict(zip(self._shapes[depth].names[kind], every.unbind(), strict=True))
        return {**own, **found}

    def table(self, kind: str, depth: int) -> Tensor:
        """Return the (L, K) coefficients of one kind of tensor."""
        return self._shapes[depth].coefficients if self._tables is None else self._tables[kind]

    def learnt(self) -> Learngene:
        """Return the learngene as it is now."""
        state = {k: v.detach().cpu().clone() for k, v in live(self._gene.family, self.sets).state().items()}
        return replace(self._gene, tensors=state)

    def network(self) -> Network:
        """Return the module as a network that `fit` trains; it is not plain."""
        gene = self._gene
        return Network(self, gene.family, gene.config, gene.labels)


class Recombined(Auxiliary):
    """An auxiliary network of one depth that learns the coefficients of its sets, and nothing else.

    Every kind of tensor has coefficients of its own. The idea, to fit few factors to a new depth before its weights, is
    that of FINE (CVPR 2026), whose factors are other ones.
    """

    def __init__(self, gene: Learngene, depth: int) -> None:
        super().__init__(gene, {depth: 1.0})
        self.requires_grad_(False)
        start = gene.sharing.coefficients(depth)
        self._number = {kind: str(n) for n, kind in enumerate(self._names)}  # a parameter's name holds no dot
        self.tables = nn.ParameterDict({n: nn.Parameter(start.clone()) for n in self._number.values()})

    def table(self, kind: str, depth: int) -> Tensor:
        """Return the learnt (L, K) coefficients of one kind of tensor."""
        found: Tensor = self.tables[self._number[kind]]
        return found

    def found(self) -> dict[str, Tensor]:
        """Return the (L, K) coefficients by kind."""
        return {kind: self.tables[n].detach().cpu() for kind, n in self._number.items()}


class Matching(Loss):
    """Relative squared error of block outputs with those of a teacher's blocks at the same share of the depth.

    The places are those of DynaBERT (Hou et al. 2020, arXiv 2004.04037); the error is relative to the mean square of
    the teacher's output, so that one weight serves all blocks and networks.
    """

    def __init__(self, passage: Passage, teacher: Network) -> None:
        super().__init__()
        self._passage, self._places = passage, teacher.family.stages(teacher.module)
        self._teacher = Live(teacher, self._places)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over the blocks compared, summed over the samples."""
        seen, ours = self._teacher.features(batch), self._passage.outputs
        count = min(len(ours), len(self._places))
        loss = logits.new_zeros(())
        for mine, theirs in zip(spread(len(ours), count), spread(len(self._places), count), strict=True):
            wanted = seen[self._places[theirs]]
            error = (ours[mine] - wanted).square().mean(-1) / wanted.square().mean()
            loss = loss + (error * valid(batch, wanted)).sum() / count
        return loss, {"blocks": loss.detach()}


def spread(depth: int, count: int) -> list[int]:
    """Return the numbers of `count` blocks at equal shares of the depth, the last among them."""
    return [(m + 1) * depth // count - 1 for m in range(count)]
