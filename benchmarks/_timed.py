"""Networks under a limit in milliseconds, and what times them: this machine's CPU, or its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edgetl import plugins, store
from edgetl.dataset import open_data
from edgetl.device import Device, probe
from edgetl.measure.measurement import Comparison, Measurement
from edgetl.methods.optin.latency import Table
from edgetl.methods.optin.units import groups_of
from edgetl.network.network import Network, load
from edgetl.recipe.load import find
from edgetl.recipe.read import read
from edgetl.recipe.schema import Context, Target
from edgetl.stages import latency
from edgetl.stages.compress import compress
from edgetl.train.batches import Data

RUNS = Path(__file__).parents[1] / "runs" / "benchmarks"
RECIPE = "vit-fashion-mnist"
TRAINED, UNTRAINED = "steps=[{use: finetune, name: dense, schedule: {epochs: 1, lr: 1.5e-3, batch: 128}}]", "steps=[]"


class Made(NamedTuple):
    """The uncut network and all that is measured with."""

    net: Network
    context: Context
    device: Device
    timing: latency.Bench


def prepared(root: Path, *, quick: bool) -> Made:
    """The network, trained for one epoch or not at all, where it is not there yet."""
    folder = RUNS / ("latency-quick" if quick else "latency")
    steps = [UNTRAINED, "reference=source"] if quick else [TRAINED]
    recipe = read(find(RECIPE), [f"data.root={root}", *steps])
    net = load(next(iter(compress(recipe, folder).values())))
    return made(net, Data(open_data(recipe, folder)[1]), recipe.targets[0], folder)


def made(net: Network, data: Data, target: Target, folder: Path) -> Made:
    """A network with a context like that of a run."""
    torch.set_num_threads(1)
    scratch = folder / "timing"
    timing = latency.Bench(target, latency.trial(data, 32), scratch, folder / "shared", folder / ".old")
    shared = partial(once, folder / "shared", data)
    context = Context(data, 0, scratch, lambda _: net, shared, partial(timed, timing))
    return Made(net, context, probe(), timing)


def timed(timing: latency.Bench, networks: Sequence[Network], device: Device) -> list[Measurement]:
    return latency.latencies(networks, device, timing)


def once(shared: Path, data: Data, what: str, parts: Mapping[str, Any], make: Callable[[Path, int], None]) -> Path:
    """What all cuts share, as a run keeps it."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    key = store.digest([what, plain, data.digest, plugins.digest("methods", "optin")])
    return store.made_once(shared / f"{what}-{key[:16]}", key, lambda out: make(out, 0), shared / ".old")


def counts(net: Network) -> dict[str, int]:
    """How many units every group has."""
    return {g.name: g.count for g in groups_of(net)}


def by_table(table: Table, networks: Sequence[Network], _: Device) -> list[Measurement]:
    """What tables predict, as if it had been measured."""
    dense, found = table.dense, [table.dense]
    for net in networks[1:]:
        share = table.predict(counts(net))
        rounds = [share * ms for ms in dense.latency.rounds_cpu_time_p50_ms]
        times = dense.latency.model_copy(update={"rounds_cpu_time_p50_ms": rounds})
        ratio = Comparison(baseline="uncut", baseline_sha256="0" * 64, quantity="cpu_time_p50", ratio=share,
                           low=share, high=share, rounds=len(rounds))  # fmt: skip
        found.append(dense.model_copy(update={"latency": times, "comparison": ratio}))
    return found
