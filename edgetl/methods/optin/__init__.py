"""OPTIN: cut heads and neurons in one shot, without gradients, labels or retraining.

Khaki & Plataniotis, "The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024, arXiv 2403.17921.
A unit's importance is what its silence does to the blocks downstream (the trajectory) and to the answer; heads and
neurons are ranked apart over all layers, and one split between them fills the MAC budget.

The text of the paper could not be read. The score follows its published Algorithm 1, the search and the details the
authors' released code; the paper's tables of ablations, its search time and its transfer results are unverified.
Decisions where these are silent, disagree or err:
- features are the outputs of the blocks, so that the last block is not blind to its own units; the blocks after the
  unit's own are compared, and for the last block its own output;
- every unit starts from an open mask, without the released code's weights by position and by layer;
- one fixed draw of positions serves all units, padding left out;
- KL(dense || silenced) at temperature 1, summed over the samples, times the constant `lambda_c`;
- a neuron is silent after its activation, which is right for every activation;
- MACs count everything that runs, stem and head included, and the budget is never exceeded; a layer may lose all.

Beyond the paper, as options that are off by default:
- `score: normalised`: the trajectory's distortion is thousands of times the output's, so that a constant weight does
  nothing; each is divided by its total over all candidates before they are added. 1 is then a weight of equals.
- `compensate: least_squares`: see compensate.py. The result has ordinary weights.
- `search: fast`: see fast.py. All units are ranked by gradients, and those near the cut scored exactly.
- `rounds`: the score of one unit knows nothing of others that go with it. Cut in steps, of equal ratios of the MACs,
  and score what is left anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.errors import BadInput
from edgetl.methods.optin import fast
from edgetl.methods.optin.compensate import Sample, compensated
from edgetl.methods.optin.sampling import Sampling, distortions, fitting, gates, memory, recorded
from edgetl.methods.optin.score import Distortion, combined, score
from edgetl.methods.optin.search import search
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.schema import Branches, Context, Need, Share, Step
from edgetl.train.batches import Data

log = logging.getLogger("edgetl")

SCORES = "scores.npz"


class Optin(Step):
    """Cut attention heads and FFN neurons down to a share of the MACs, in one shot."""

    use: Literal["optin"] = "optin"
    keep_macs: Branches[Share] = 0.6  # share to keep of the MACs of this step's input, stem and head included
    samples: int = Field(128, ge=1)  # training samples to score with, labels unused
    lambda_c: float = Field(0.1, ge=0)  # weight of the output's distortion beside the trajectory's
    tokens: int = Field(768, ge=1)  # positions that the trajectory's distortion compares
    batch: int = Field(32, ge=1)  # samples in one forward: memory and speed
    score: Literal["paper", "normalised"] = "paper"  # add both distortions as they are, or as shares of their totals
    search: Literal["exact", "fast"] = "exact"  # score every unit, or rank by gradients and score those near the cut
    rescore: Share = 0.25  # share of the neurons that the fast search scores exactly, besides all heads
    rounds: int = Field(1, ge=1, le=4)  # cut in so many steps and score what is left anew after each
    compensate: Literal["none", "least_squares"] = "none"  # fit what is left of a layer to the outputs it had
    compensation_samples: int = Field(512, ge=2)  # training samples to fit with, labels unused
    ridge: float = Field(1e-3, gt=0)  # pull of a fit to the weights as cut, as a share of the mean squared input
    memory_mb: float = Field(4000, gt=0)  # most memory for scoring beyond the weights; the batch is split to keep it

    cuts: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})
    shared: ClassVar[bool] = True

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes the scores cost: a silent unit runs half of the blocks again."""
        each = 0.5 * units if self.search == "exact" else 0.5 * self.rescore * units + 6 * fast.DRAWS
        return self.samples * each * self.rounds

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the network without its least important units.

        Raises:
            BadInput: the share is below what cannot be cut, there are fewer training samples than asked for, or the
                family has no heads and no neurons.
            OutOfResources: scoring needs more memory than `memory_mb`.
            Diverged: the network gives values that are not finite.

        """
        groups = _groups(net)
        tokens = ctx.data.mean_tokens()
        prices = cost.prices(net, tokens)
        budgets = self._budgets(net, groups, prices, tokens)
        if budgets[-1] >= sum(g.count * prices[g.name] for g in groups):
            log.info("optin: every head and neuron is kept")
            return net
        self._check_samples(len(ctx.data.rows("train")))
        cut = net
        for budget in budgets:
            cut = self._cut(cut, budget, prices, ctx)
            if self.compensate == "least_squares":
                sample = Sample(self.compensation_samples, self.batch, ctx.seed)
                cut = compensated(net, cut, ctx.data, sample, self.ridge)
        return cut

    def _budgets(
        self, net: Network, groups: Sequence[Group], prices: Mapping[str, int], tokens: int | None
    ) -> tuple[int, ...]:
        """Return the MACs that are left for units after all that cannot be cut, round by round."""
        if not groups:
            raise BadInput(
                f"{self.name or self.use}: family '{net.family.name}' has no heads and no neurons to cut",
                fix="use another method for this backbone, or a transformer family such as hf_vit",
            )
        dense = cost.macs(net, tokens)
        fixed = dense - sum(g.count * prices[g.name] for g in groups)
        shares = [self.keep_macs ** (step / self.rounds) for step in range(1, self.rounds + 1)]
        budgets = tuple(math.floor(share * dense) - fixed for share in shares)
        if budgets[-1] < 0:
            raise BadInput(
                f"{self.name or self.use}: keep_macs {self.keep_macs:g} is below the share that cannot be cut, "
                f"{fixed / dense:.4f}",
                fix=f"set keep_macs to {math.ceil(fixed / dense * 1e3) / 1e3:g} or more",
            )
        return budgets

    def _check_samples(self, there: int) -> None:
        """Refuse to draw more samples than there are."""
        wanted = {"samples": (self.samples, "to score with")}
        if self.compensate != "none":
            wanted["compensation_samples"] = (self.compensation_samples, "to compensate with")
        for field, (count, why) in wanted.items():
            if count > there:
                raise BadInput(
                    f"{self.name or self.use}: {count} samples {why}, but the training split holds {there}",
                    fix=f"set {field} to {there} or less",
                )

    def _cut(self, net: Network, budget: int, prices: Mapping[str, int], ctx: Context) -> Network:
        """Return a copy of the network with as many of its best units as the budget pays for."""
        groups = _groups(net)
        if budget >= sum(g.count * prices[g.name] for g in groups):
            return net.copy()
        scores = self._scores(self._scored(net, groups, prices, budget, ctx))
        kept = search(groups, scores, prices, budget)
        for group in groups:
            log.info("optin: %s: %d of %d kept", group.name, len(kept[group.name]), group.count)
        return net.edit([g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count])

    def _scores(self, found: Mapping[str, Distortion]) -> dict[str, NDArray[np.float64]]:
        return combined(found, self.lambda_c, normalised=self.score == "normalised")

    def _scored(
        self, net: Network, groups: Sequence[Group], prices: Mapping[str, int], budget: int, ctx: Context
    ) -> dict[str, Distortion]:
        """Return the distortions of all units; exact ones are computed once for all branches of this step."""
        planned = Sampling(self.samples, self.tokens, self.batch, seed=0)
        exact = self.search == "exact"
        needed = memory(net, groups, ctx.data, planned, graph=not exact)
        batch = fitting(needed, self.batch, self.memory_mb * 1e6)

        def make(folder: Path, seed: int) -> None:
            log.info("scores: about %s", needed.told(batch))
            sampling = replace(planned, batch=batch, seed=seed)
            if exact:
                found = distortions(net, groups, ctx.data, sampling)
            else:
                found = self._fast(net, prices, budget, ctx.data, sampling)
            _write(folder / SCORES, found)

        parts = {"network": net, "samples": self.samples, "tokens": self.tokens, "batch": batch}
        if not exact:  # what is scored exactly depends on where the cut is
            parts |= {"rescore": self.rescore, "score": self.score, "lambda_c": self.lambda_c, "budget": budget}
        return _read(ctx.once("optin-scores", parts, make) / SCORES, groups)

    def _fast(
        self, net: Network, prices: Mapping[str, int], budget: int, data: Data, sampling: Sampling
    ) -> dict[str, Distortion]:
        """Return estimated distortions, exact ones near the cut."""
        groups = _groups(net)
        with recorded(net, data, sampling) as trajectory:
            rough = fast.estimate(trajectory, groups, gates(net, groups), sampling.seed)
            chosen = fast.near(groups, self._scores(rough), prices, budget, self.rescore)
            log.info("scores: %d of %d units exactly", sum(map(len, chosen.values())), sum(g.count for g in groups))
            return fast.merged(groups, rough, score(trajectory, groups, gates(net, groups), chosen), chosen)


def _groups(net: Network) -> tuple[Group, ...]:
    return tuple(g for g in net.family.units(net.module) if g.kind in ("heads", "neurons"))


def _write(file: Path, found: Mapping[str, Distortion]) -> None:
    terms = {f"{name}.manifold": d.manifold for name, d in found.items()}
    np.savez(file, allow_pickle=False, **terms, **{f"{name}.output": d.output for name, d in found.items()})


def _read(file: Path, groups: Sequence[Group]) -> dict[str, Distortion]:
    with np.load(file, allow_pickle=False) as stored:
        return {g.name: Distortion(stored[f"{g.name}.manifold"], stored[f"{g.name}.output"]) for g in groups}


PLUGIN = Optin
