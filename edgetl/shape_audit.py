"""Whether a file takes every size that its manifest says, at the ends of its dynamic axes and between. [host: torch]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from edgetl import evaluate
from edgetl.errors import BadHost, BadInput, GateMissed
from edgetl.network.network import Network
from edgetl.preprocess import IDS, MASK
from edgetl.session import Session
from edgetl.types import Feed, Json

BATCHES = (1, 7, 64)
"""The least, an odd one, and the most that files are run at here."""

FIX = "report this network; nothing was shipped"


def audit(net: Network, session: Session, heads: Feed, most_tokens: int | None, tolerance: float | None) -> list[Json]:
    """Return the sizes at which a file answered as it should, each with its largest relative difference from torch.

    `heads` are network inputs, each (n, ...), of which the batches are made; of texts, whose `most_tokens` is given,
    ids are drawn at random at every length. Without a tolerance, answers only have to be finite and of the right shape.

    Raises:
        GateMissed: it names the size at which the file fails.

    """
    found: list[Json] = []
    for sizes, feed in _feeds(net, heads, most_tokens):
        told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        try:
            answers = np.asarray(session.run(feed)["logits"], np.float32)
        except (BadInput, BadHost) as e:
            raise GateMissed(f"the file fails at {told}: {e.problem}", fix=FIX) from e
        with torch.inference_mode():
            wanted = net.logits({k: torch.from_numpy(v) for k, v in feed.items()}).float().numpy()
        if answers.shape != wanted.shape or not np.isfinite(answers).all():
            shapes = f"{list(answers.shape)}, not {list(wanted.shape)} finite numbers"
            raise GateMissed(f"the file fails at {told}: its answers are {shapes}", fix=FIX)
        off = evaluate.parity(wanted, answers).max_rel
        if tolerance is not None and off > tolerance:
            problem = f"the file fails at {told}: off by {off:.2g} of the largest answer, limit {tolerance:g}"
            raise GateMissed(problem, fix=FIX)
        found.append({**sizes, "max_rel": off})
    return found


def _feeds(net: Network, heads: Feed, most: int | None) -> Iterator[tuple[Mapping[str, int], Feed]]:
    """Yield batches by the sizes of their axes; the shortest text comes in the largest batch, as memory is bounded."""
    if most is None:
        for batch in BATCHES:
            rows = np.arange(batch) % len(next(iter(heads.values())))
            yield {"batch": batch}, {name: np.ascontiguousarray(values[rows]) for name, values in heads.items()}
        return
    draw = np.random.default_rng(0)
    for batch, tokens in zip(BATCHES, (most, max(1, most // 2 - 1 + most // 2 % 2), 1), strict=True):
        ids = draw.integers(0, net.config["vocab_size"], (batch, tokens), np.int64)
        feed = {IDS: ids, MASK: np.ones((batch, tokens), np.int64)}
        yield {"batch": batch, "tokens": tokens}, {name: feed[name] for name in heads}
