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
- channels of convolutional networks are compared as tokens are, places of the map being positions: Algorithm 1 has one
  distance, and the released one for CNNs, between means over the batch, never ran. They are chosen by a knapsack, as
  they have a price in every layer; see search.py;
- MACs count everything that runs, stem and head included, and the budget is never exceeded; a layer may lose all.

`score: paper` is all of that, and exactly that. The default goes beyond it, each part measured by benchmarks/optin.py:
- `score: normalised`: the trajectory's distortion is thousands of times the output's, so that a constant weight does
  nothing; each is divided by its total over all candidates before they are added. 1 is then a weight of equals.
- `compensate: least_squares`: see compensate.py. The result has ordinary weights.
- `rounds`: the score of one unit knows nothing of others that go with it. Cut in steps, of equal ratios of the MACs,
  and score what is left anew.
- `search: fast`, taken for networks of many units: see fast.py. All units are ranked by gradients, and those near the
  cut scored exactly.
Options that stay off until they are asked for:
- `max_latency`: the budget is time on a device, see latency.py and limit.py; `keep_params`: it is weights.
- `worth: joint`: under `max_latency` a layer's units are worth what they are together, see joint.py. It keeps more in
  deep cuts and less in shallow ones: benchmarks/optin_worth.py.
- `token_share`: tokens are the third unit, see tokens.py. The paper's "tau" has them, its "beta" and the default not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from edgetl.device import load_device
from edgetl.errors import BadInput
from edgetl.methods.optin import bill, fast, limit, stored, tokens
from edgetl.methods.optin.bill import Bill
from edgetl.methods.optin.compensate import Sample, compensated
from edgetl.methods.optin.evidence import EVIDENCE
from edgetl.methods.optin.joint import together
from edgetl.methods.optin.sampling import Memory, Sampling, distortions, fitting, gates, memory, recorded
from edgetl.methods.optin.score import Distortion, combined, score
from edgetl.methods.optin.search import fill
from edgetl.methods.optin.units import check, groups_of
from edgetl.network import cost
from edgetl.network.edits import MergeTokens
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.schema import Branches, Context, MaxLatency, Measured, Need, Share, Step
from edgetl.train.batches import Data

log = logging.getLogger("edgetl")

KEEP = 0.6
BUDGETS = ("keep_macs", "keep_params", "max_latency")
PAPER: Mapping[str, Any] = {"lambda_c": 0.1, "search": "exact", "rounds": 1, "compensate": "none"}
"""What goes with `score: paper` where nothing else is asked for."""

MANY = 2000
"""Units above which `search: auto` is the fast one: exact scores would cost a thousand forward passes a sample."""


class Optin(Step):
    """Cut attention heads and FFN neurons down to a budget, in one shot."""

    use: Literal["optin"] = "optin"
    keep_macs: Branches[float | None] = Field(None, gt=0, le=1)  # share of the input's MACs; 0.6 without another budget
    keep_params: Branches[float | None] = Field(None, gt=0, le=1)  # or a share of its weights
    max_latency: Branches[MaxLatency | None] = None  # or a limit on the time of a call, measured on a device
    token_share: float = Field(0.0, ge=0, le=1)  # share of the saved MACs that merging tokens saves; the paper's is 0.8
    samples: int = Field(128, ge=1)  # training samples to score with, labels unused
    score: Literal["normalised", "paper"] = "normalised"  # add both terms as shares of their totals, or plainly
    lambda_c: float = Field(1.0, ge=0)  # weight of the output's term; the paper's is 0.1
    tokens: int = Field(768, ge=1)  # positions that the trajectory's distortion compares
    batch: int = Field(32, ge=1)  # samples in one forward: memory and speed
    search: Literal["auto", "exact", "fast"] = "auto"  # score all units, or rank them and score those near the cut
    rescore: Share = 0.02  # share of the neurons that the fast search scores exactly, besides half of the heads
    rounds: int = Field(3, ge=1, le=4)  # cut in so many steps and score what is left anew after each; the paper's is 1
    compensate: Literal["least_squares", "none"] = "least_squares"  # fit what is left of a layer to the outputs it had
    compensation_samples: int = Field(512, ge=2)  # training samples to fit with, or all there are; labels unused
    ridge: float = Field(1e-3, gt=0)  # pull of a fit to the weights as cut, as a share of the mean squared input
    multiple: int = Field(1, ge=1)  # keep neurons and channels in multiples of this: 16 is what a CPU's kernels like
    worth: Literal["additive", "joint"] = "additive"  # of a layer's units in max_latency: summed up, or tried together
    memory_mb: float = Field(4000, gt=0)  # most memory for scoring beyond the weights; the batch is split to keep it

    cuts: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})
    shared: ClassVar[bool] = True
    measured: ClassVar[Mapping[str, tuple[Measured, ...]]] = EVIDENCE

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        budget = {} if any(given.get(name) is not None for name in BUDGETS) else {"keep_macs": KEEP}
        return {**(PAPER if given.get("score") == "paper" else {}), **given, **budget}

    @field_validator("keep_params", "max_latency")
    @classmethod
    def _one_budget(cls, value: Any, info: ValidationInfo) -> Any:
        for other in BUDGETS if value is not None else ():
            if info.data.get(other) is not None:
                raise ValueError(f"one budget at a time, and {other} is given too")
        return value

    @field_validator("token_share")
    @classmethod
    def _of_macs(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("keep_macs") is None:
            raise ValueError("tokens take a share of saved MACs: give keep_macs as the budget")
        return value

    def needed(self) -> frozenset[Need]:
        """Return what these settings need: where tokens merge, blocks that can."""
        return self.needs | {"tokens"} if self.token_share else self.needs

    def devices(self) -> tuple[str, ...]:
        """Return the device that a limit on the latency holds on."""
        return () if self.max_latency is None else (self.max_latency.device,)

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes the scores cost: a silent unit runs half of the blocks again."""
        each = 0.5 * units if self._exact(units) else 0.5 * self.rescore * units + 2 * (fast.DRAWS + fast.ANSWERS)
        return self.samples * each * self.rounds

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the network without its least important units.

        Raises:
            BadInput: the budget is below what cannot be cut, there are fewer training samples than asked for, or the
                family has no units.
            OutOfResources: scoring needs more memory than `memory_mb`.
            Diverged: the network gives values that are not finite.
            BadHost: the device cannot be measured.
            GateMissed: no cut that was measured keeps the limit on the latency.

        """
        groups = groups_of(net)
        check(self.name or self.use, net, groups)
        if self.max_latency is not None:
            return self._within(net, ctx, self.max_latency)
        merges = self._merges(net, groups, ctx)
        left = self._bill(net.edit(merges), ctx)
        budgets = self._budgets(self._bill(net, ctx).whole, groups, left)
        if budgets[-1] >= left.units:
            log.info("optin: every unit is kept")
            return net.edit(merges)
        self._check_samples(len(ctx.data.rows("train")))
        cut = net
        for budget in budgets:
            cut = self._compensated(net, self._cut(cut, budget, merges, ctx), ctx)
        return cut.edit(merges)  # last, so that units are scored and fitted where every token is in its place

    def _merges(self, net: Network, groups: Sequence[Group], ctx: Context) -> tuple[MergeTokens, ...]:
        """Return the merges that save the tokens' share of the MACs to save, none where tokens are no units."""
        if not self.token_share or self.keep_macs is None:
            return ()
        if not net.family.tokens(net.module):
            problem = f"{self.name or self.use}: the classifier reads the mean of all patches, so none may merge"
            raise BadInput(problem, fix="leave token_share out, or use a network that reads its class token")
        self._check_samples(len(ctx.data.rows("train")))
        found = tokens.distortion(net, ctx, self._fitted(memory(net, groups, ctx.data, self._asked)))
        saved = math.ceil(self.token_share * (1 - self.keep_macs) * cost.macs(net))
        return tokens.merges(net, self._scores({"tokens": found})["tokens"], saved)

    def _compensated(self, net: Network, cut: Network, ctx: Context) -> Network:
        """Return a cut network with its layers fitted to the outputs they had, where asked."""
        if self.compensate == "none":
            return cut
        count = min(self.compensation_samples, len(ctx.data.rows("train")))
        sample = Sample(count, self.batch, ctx.seed, self.memory_mb * 1e6)
        return compensated(net, cut, ctx.data, sample, self.ridge)

    def _bill(self, net: Network, ctx: Context) -> Bill:
        """Return what a network costs, in what the budget counts."""
        return bill.macs(net, ctx.data.mean_tokens()) if self.keep_params is None else bill.weights(net)

    def _budgets(self, whole: int, groups: Sequence[Group], left: Bill) -> tuple[int, ...]:
        """Return what is left for units after all that cannot be cut, round by round."""
        field = "keep_macs" if self.keep_params is None else "keep_params"
        keep: float = getattr(self, field)
        budgets = tuple(math.floor(share * whole) - left.fixed for share in self._shares(keep))
        least = sum(g.least * left.prices[g.name] for g in groups)
        if budgets[-1] < least:
            stays = (left.fixed + least) / whole
            raise BadInput(
                f"{self.name or self.use}: {field} {keep:g} is below the share that cannot be cut, {stays:.4f}",
                fix=f"set {field} to {math.ceil(stays * 1e3) / 1e3:g} or more",
            )
        return budgets

    def _shares(self, keep: float) -> tuple[float, ...]:
        """Return the share of the input that is left after every round."""
        return tuple(keep ** (step / self.rounds) for step in range(1, self.rounds + 1))

    def _within(self, net: Network, ctx: Context, asked: MaxLatency) -> Network:
        """Return the network without the units that are worth least for the time they take."""
        goal = limit.goal(self.name or self.use, asked, load_device(asked.device), net, ctx)
        if goal.kept_uncut:
            log.info("%s: every unit is kept", goal.step)
            return net
        self._check_samples(len(ctx.data.rows("train")))
        table, cut = goal.table, net
        for number, share in enumerate(self._shares(goal.share), 1):
            groups = [g for g in groups_of(cut) if g.name in table.times]
            found = self._scored(cut, groups, table.prices(groups), table.budget(share), ctx)
            ways = limit.ways(groups, self._scores(found), table, self.multiple)
            if self.worth == "joint":
                ways = together(cut, groups, ways, ctx, self._fitted(memory(cut, groups, ctx.data, self._asked)))
            pick = partial(limit.choose, ways, table)
            if number < self.rounds:
                cut = cut.edit(limit.trimmed(groups, pick(share)))
            else:
                cut = limit.settle(goal, net, ctx, cut, pick)
            cut = self._compensated(net, cut, ctx)
        return cut

    def _check_samples(self, there: int) -> None:
        """Refuse to draw more samples than there are."""
        if self.samples > there:
            raise BadInput(
                f"{self.name or self.use}: {self.samples} samples to score with, but the training split holds {there}",
                fix=f"set samples to {there} or less",
            )

    def _cut(self, net: Network, budget: int, merges: Sequence[MergeTokens], ctx: Context) -> Network:
        """Return a copy with as many of its best units as the budget pays for at the prices behind the merges."""
        groups, costs = groups_of(net), self._bill(net.edit(merges), ctx)
        if budget >= costs.units:
            return net.copy()
        scores = self._scores(self._scored(net, groups, costs.prices, budget, ctx))
        kept = fill(groups, scores, costs, budget, self.multiple)
        for group in groups:
            log.info("optin: %s: %d of %d kept", group.name, len(kept[group.name]), group.count)
        return net.edit([g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count])

    def _exact(self, units: int) -> bool:
        """Return whether every unit is scored exactly."""
        return self.search == "exact" or (self.search == "auto" and units <= MANY)

    def _scores(self, found: Mapping[str, Distortion]) -> dict[str, NDArray[np.float64]]:
        return combined(found, self.lambda_c, normalised=self.score == "normalised")

    def _scored(
        self, net: Network, groups: Sequence[Group], prices: Mapping[str, int], budget: int, ctx: Context
    ) -> dict[str, Distortion]:
        """Return the distortions of all units; exact ones are computed once for all branches of this step."""
        exact = self._exact(sum(g.count for g in groups))
        needed = memory(net, groups, ctx.data, self._asked, graph=not exact)
        planned = self._fitted(needed)

        def make(folder: Path, seed: int) -> None:
            log.info("scores: about %s", needed.told(planned.batch))
            sampling = replace(planned, seed=seed)
            if exact:
                found = distortions(net, groups, ctx.data, sampling)
            else:
                found = self._fast(net, prices, budget, ctx.data, sampling)
            stored.write(folder, found)

        parts = {"network": net, "samples": self.samples, "tokens": self.tokens, "batch": planned.batch}
        if not exact:  # what is scored exactly depends on where the cut is
            parts |= {"rescore": self.rescore, "score": self.score, "lambda_c": self.lambda_c, "budget": budget}
        return stored.read(ctx.once("optin-scores", parts, make), groups)

    @property
    def _asked(self) -> Sampling:
        return Sampling(self.samples, self.tokens, self.batch, seed=0)

    def _fitted(self, needed: Memory) -> Sampling:
        """Return what units are scored on, in batches that keep the limit of memory."""
        return replace(self._asked, batch=fitting(needed, self.batch, self.memory_mb * 1e6))

    def _fast(
        self, net: Network, prices: Mapping[str, int], budget: int, data: Data, sampling: Sampling
    ) -> dict[str, Distortion]:
        """Return estimated distortions, exact ones near the cut."""
        groups = groups_of(net)
        with recorded(net, data, sampling) as trajectory:
            rough = fast.estimate(trajectory, groups, gates(net, groups), sampling.seed)
            chosen = fast.near(groups, self._scores(rough), prices, budget, self.rescore)
            log.info("scores: %d of %d units exactly", sum(map(len, chosen.values())), sum(g.count for g in groups))
            return fast.merged(groups, rough, score(trajectory, groups, gates(net, groups), chosen), chosen)


PLUGIN = Optin
