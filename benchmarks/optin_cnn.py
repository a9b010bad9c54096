"""What OPTIN keeps of convolutional networks beside other criteria: accuracy right after the cut, without training.

ResNet-20 and ResNet-56 for CIFAR-10, as published, lose channels inside their blocks until a share of their MACs is
left. All criteria cut the same groups, see the same training images and answer the same test images; the network is
asked in torch, because nothing but weights differs between the rows.

    python benchmarks/optin_cnn.py --cifar10 DIR --weights DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Row, finished, host, keep, percent, points
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgetl import intervals, plugins, store
from edgetl.data.arrays import Arrays
from edgetl.methods.optin import Optin
from edgetl.network import cost
from edgetl.network.network import Network, create, load
from edgetl.network.saved import prep_from_json
from edgetl.prepare import prepare
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "optin-cnn"
RESULT = Path(__file__).parent / "results" / "optin_cnn.json"
MINUTES = {"resnet20": 30, "resnet56": 140}
KEEPS = (0.8, 0.6, 0.5, 0.4, 0.3)
QUICK_KEEPS = (0.8, 0.5)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SAMPLES = 128
"""Training images that every criterion may look at; with labels where it wants them."""

OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"score": "paper"},
    "normalised": {"compensate": "none", "rounds": 1},
    "paper+least_squares": {"score": "paper", "compensate": "least_squares"},
    "default": {},
}
PRUNING = ("tp-magnitude", "tp-taylor", "tp-hessian")
CRITERIA = ("random", "l1", "bn-scale", *PRUNING, *OPTIONS)

Scores = Mapping[str, NDArray[np.float64]]
Right = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="folder with train*.npz and test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="folder with resnet20.safetensors and resnet56...")
    parser.add_argument("--quick", action="store_true", help="ResNet-20, two budgets, 2,000 test images")
    parser.add_argument(
        "--networks", nargs="+", choices=tuple(MINUTES), default=["resnet20"], help="[default: resnet20]"
    )
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "optin_cnn.json" if options.quick else RESULT)
    names, keeps = (("resnet20",), QUICK_KEEPS) if options.quick else (tuple(options.networks), KEEPS)
    minutes = 8 if options.quick else sum(MINUTES[name] for name in names)
    print(f"about {minutes} minutes; finished rows of {out} are kept", flush=True)
    torch.set_num_threads(1)
    tested = 2000 if options.quick else 10_000
    now, rights = conditions(tested, keeps), RUNS / "right" / store.digest(str(out.resolve()))[:8]
    rows = [row for row in finished(out, now) if file_of(rights, key_of(row)).is_file()]
    for name in names:
        dense = create("resnet_cifar", str(options.weights / f"{name}.safetensors"), CLASSES, 0)
        data = opened(options.cifar10, dense)
        there = {key_of(row) for row in rows}
        wanted = [(name, "dense", 1.0), *((name, c, k) for c in CRITERIA for k in keeps)]
        for row in measured(dense, data, tested, [key for key in wanted if key not in there], rights):
            rows.append(row)
            keep(out, now, rows, targets(names, rows, rights, keeps))
    show(names, rows, keeps)


def conditions(tested: int, keeps: Sequence[float]) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    packages = ("edgetl", "torch", "torch-pruning", "numpy")
    return {
        **host(packages),
        "threads": 1,
        "method": plugins.digest("methods", "optin")[:16],
        "options": OPTIONS,
        "keeps": list(keeps),
        "samples": SAMPLES,
        "test_images": tested,
        "ranked": "criteria but OPTIN's lose the channels that score lowest over all layers until the budget is kept",
        "interval": "95 %, paired over test images; the networks are given",
    }


def opened(folder: Path, net: Network) -> Data:
    """CIFAR-10 as the `arrays` data source reads it: the first 10,000 training images, and those to test."""
    plain = RUNS / "cifar10"
    plain.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        if not (plain / f"{part}.npz").is_file():
            x, y = decoded(sorted(folder.glob(f"{part}*.npz"))[0])
            np.savez(plain / f"{part}.npz", x=x, y=y)
    (plain / "classes.txt").write_text("\n".join(CLASSES) + "\n", "utf-8")
    source = Arrays(root=plain)
    examples = source.examples()
    operations = source.operations(examples.raw, prep_from_json(net.facts["prep"], plain))
    return Data(prepare(source, examples, operations, 0, RUNS / "data"))


def decoded(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 32, 32, 3) and classes of a file, also where it holds the differences of neighbouring pixels."""
    with np.load(file, allow_pickle=False) as found:
        if "planes" not in found:
            return found["x"], found["y"].astype(np.int64)
        x = found["planes"].cumsum(3, dtype=np.uint8).cumsum(2, dtype=np.uint8)
        x[0] += x[1]
        x[2] += x[1]
        return np.ascontiguousarray(x.transpose(1, 2, 3, 0)), found["labels"].astype(np.int64)


def key_of(row: Row) -> tuple[str, str, float]:
    return row["network"], row["criterion"], row["keep_macs"]


def file_of(rights: Path, key: tuple[str, str, float]) -> Path:
    return rights / ("-".join(map(str, key)) + ".npy")


def measured(
    dense: Network, data: Data, tested: int, missing: Sequence[tuple[str, str, float]], rights: Path
) -> Iterator[Row]:
    """Yield the rows of one network that are not there yet, the dense one's first."""
    rights.mkdir(parents=True, exist_ok=True)
    known: dict[str, Scores] = {}
    for name, criterion, share in missing:
        key = (name, criterion, share)
        print(f"{name}: {criterion} at {share:g}", file=sys.stderr, flush=True)
        started = time.process_time()
        net = dense if criterion == "dense" else cut(dense, criterion, share, data, known)
        seconds = time.process_time() - started
        right = answered(net, data, tested)
        np.save(file_of(rights, key), right)
        drop = intervals.paired_difference(np.load(file_of(rights, (name, "dense", 1.0))), right)
        found = {"n": len(right), "macs": cost.macs(net), "accuracy": percent(float(right.mean()))}
        told = points(drop)
        row = dict(zip(("network", "criterion", "keep_macs"), key, strict=True))
        yield {**row, **found, "drop": told, "cpu_s": round(seconds, 1)}


def cut(dense: Network, criterion: str, share: float, data: Data, known: dict[str, Scores]) -> Network:
    """The network with this share of its MACs; scores that several shares need are made once, and kept in `known`."""
    if criterion in OPTIONS:
        context = Context(data, 0, RUNS, lambda step: load(RUNS / step), partial(once, dense, data))
        return Optin(keep_macs=share, samples=SAMPLES, **OPTIONS[criterion]).run(dense.copy(), context)
    if criterion not in known:
        scores = {"random": random, "l1": l1, "bn-scale": bn_scale}.get(criterion, partial(pruned, criterion))
        known[criterion] = scores(dense.copy(), data)
    return ranked(dense, known[criterion], share)


def once(dense: Network, data: Data, what: str, parts: Mapping[str, Any], make: Any) -> Path:
    """What rows of one network share: its scores."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    key = store.digest({"what": what, "parts": plain, "data": data.digest, "code": plugins.digest("methods", "optin")})
    made = RUNS / "scores" / f"{what}-{key[:16]}"
    return store.made_once(made, key, lambda to: make(to, 0), RUNS / "scores" / ".old")


def random(net: Network, _: Data) -> Scores:
    draw = np.random.default_rng(0)
    return {g.name: draw.uniform(size=g.count) for g in net.family.units(net.module)}


def l1(net: Network, _: Data) -> Scores:
    """The mean of the absolute weights of a filter (Li et al. 2017, arXiv 1608.08710), as a share of its layer's."""
    return {g.name: mean_one(tensor(net, g.tensors[0][0]).abs().flatten(1).mean(1)) for g in units(net)}


def bn_scale(net: Network, _: Data) -> Scores:
    """The scale of the batch normalisation behind a filter (Liu et al. 2017, arXiv 1708.06519)."""
    return {g.name: tensor(net, g.tensors[1][0]).abs().double().numpy() for g in units(net)}


def units(net: Network) -> Sequence[Any]:
    return net.family.units(net.module)


def tensor(net: Network, path: str) -> torch.Tensor:
    return net.state()[path]


def mean_one(values: torch.Tensor) -> NDArray[np.float64]:
    """The values, divided by their mean: filters of different sizes compare."""
    return (values.double() / values.double().mean()).numpy()


def pruned(criterion: str, net: Network, data: Data) -> Scores:
    """Torch-Pruning's importance of every channel, normalised by layer as its global pruning does by default."""
    import torch_pruning

    importance = {
        "tp-magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "tp-taylor": torch_pruning.importance.GroupTaylorImportance,
        "tp-hessian": torch_pruning.importance.GroupHessianImportance,
    }[criterion]()
    batch = data.batch(np.random.default_rng(0).choice(data.rows("train"), SAMPLES, replace=False))
    losses = functional.cross_entropy(net.logits(batch), batch["labels"], reduction="none")
    if criterion == "tp-taylor":
        losses.sum().backward()
    elif criterion == "tp-hessian":
        importance.zero_grad()
        for loss in losses:
            net.module.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(net.module)
    pixels = net.family.example(net.config, 1)["pixel_values"]
    graph = torch_pruning.DependencyGraph().build_dependency(net.module, example_inputs=pixels)
    found = {}
    for group in units(net):
        first = net.at(group.tensors[0][0].removesuffix(".weight"))
        assert isinstance(first, nn.Conv2d)
        chosen = graph.get_pruning_group(first, torch_pruning.prune_conv_out_channels, list(range(group.count)))
        found[group.name] = importance(chosen).detach().double().numpy()
    return found


def ranked(net: Network, scores: Scores, share: float) -> Network:
    """The network without the channels that score lowest over all layers, as few as the budget allows."""
    groups, budget = units(net), math.floor(share * cost.macs(net))
    order = sorted((float(scores[g.name][u]), g.name, u) for g in groups for u in range(g.count))

    def without(count: int) -> Network:
        gone = {(name, unit) for _, name, unit in order[:count]}
        kept = {g: [u for u in range(g.count) if (g.name, u) not in gone] for g in groups}
        return net.edit([g.keep(units) for g, units in kept.items() if len(units) < g.count])

    few, many = 0, len(order)
    while few < many:
        middle = (few + many) // 2
        if cost.macs(without(middle)) <= budget:
            many = middle
        else:
            few = middle + 1
    return without(few)


@torch.no_grad()
def answered(net: Network, data: Data, tested: int) -> Right:
    """Whether each test image is answered right."""
    rows = data.rows("test")[:tested]
    batches = (data.batch(part) for part in np.array_split(rows, max(1, len(rows) // 500)))
    return np.concatenate([(net.logits(b).argmax(1) == b["labels"]).numpy() for b in batches])


def targets(names: Sequence[str], rows: Sequence[Row], rights: Path, keeps: Sequence[float]) -> list[Row]:
    """The goals of every network whose rows are whole, in points of accuracy, pooled over the budgets."""
    there = {key_of(row) for row in rows}
    return [
        goal
        for name in names
        if {(name, c, k) for c in CRITERIA for k in keeps} <= there
        for goal in judged(name, rights, keeps)
    ]


def judged(name: str, rights: Path, keeps: Sequence[float]) -> list[Row]:
    """What OPTIN keeps more than others; met where the lower end of the mean's interval is above 0."""

    def right(criterion: str) -> NDArray[np.float64]:
        each = [np.load(file_of(rights, (name, criterion, k))).astype(np.float64) for k in keeps]
        return np.mean(each, axis=0)  # type: ignore[no-any-return]

    best = max(PRUNING, key=lambda criterion: float(right(criterion).mean()))
    pairs = [("paper", "random"), ("paper", "l1"), ("paper", "bn-scale"), ("paper", best), ("default", best)]
    found = []
    for ours, theirs in [*pairs, ("default", "paper")]:
        gain = right(ours) - right(theirs)
        mean, half = float(gain.mean()), intervals.Z * float(gain.std(ddof=1)) / math.sqrt(len(gain))
        ends = {"value": percent(mean), "low": percent(mean - half), "high": percent(mean + half)}
        words = f"{name}: {ours} keeps more than {theirs}, points"
        found.append({"name": words, "goal": 0, **ends, "met": mean - half > 0})
    return found


def show(names: Sequence[str], rows: Sequence[Row], keeps: Sequence[float]) -> None:
    """Print the accuracies as a table in Markdown."""
    for name in names:
        cells = {(r["criterion"], r["keep_macs"]): f"{r['accuracy']:.2f}" for r in rows if r["network"] == name}
        print(f"\n{name}: dense {cells['dense', 1.0]} %\n")
        print("| criterion | " + " | ".join(f"{k:g}" for k in keeps) + " |")
        print("|---" * (len(keeps) + 1) + "|")
        for criterion in CRITERIA:
            print(f"| {criterion} | " + " | ".join(cells[criterion, k] for k in keeps) + " |")


if __name__ == "__main__":
    main()
