"""The networks of benchmarks/export.py: the recipe that trains each, and the chain that makes a small student of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.plugins import names

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "export"


@dataclass(frozen=True)
class Job:
    """One network: the recipe that makes it, and its chain where it has one."""

    name: str
    recipe: str
    sets: tuple[str, ...]
    tested: int  # test samples, at most
    minutes: int


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every network whose data is given."""
    if options.quick:
        dense = "{use: finetune, name: dense, schedule: {epochs: 20, lr: 7.0e-4}}"
        yield Job("demo", "demo", (f"steps=[{dense}, {small_cnn(8, 'L', 8, 20)}]",), 500, 9)
        return
    if options.fashion_mnist:
        dense = "{use: finetune, name: dense, schedule: {epochs: 8, lr: 1.5e-3, batch: 128}}"
        steps = f"steps=[{dense}, {small_cnn(28, 'L', 8, 20)}]"
        yield Job(
            "vit-fashion-mnist",
            "vit-fashion-mnist",
            (f"data.root={options.fashion_mnist.resolve()}", steps),
            10_000,
            55,
        )
    if options.sst2 and options.minilm:
        dense = "{use: finetune, name: dense, schedule: {epochs: 2, lr: 1.0e-4, batch: 32}}"
        given = (f"data.root={options.sst2.resolve()}", f"model.source={options.minilm}", f"steps=[{dense}]")
        yield Job("minilm-sst2", "minilm-text", given, 10_000, 30)
    if options.banking77 and options.minilm:
        given = (f"data.root={options.banking77.resolve()}", f"model.source={options.minilm}")
        yield Job("minilm-banking77", "text-10x", given, 10_000, 100)
    if options.cifar10 and options.weights:
        weights = options.weights.resolve()
        resnet = weights / "resnet-cifar10" / "resnet56.safetensors"
        whole = (f"data.root={cifar10(options.cifar10)}", f"model.source={resnet}", "steps=[]", "reference=source")
        yield Job("resnet56-cifar10", "resnet-cifar10", whole, 10_000, 20)
        if "efficientnet_lite" in names("families"):
            yield efficientnet(weights / "efficientnet-lite0-imagenet" / "model.safetensors", options.cifar10)


def small_cnn(size: int, mode: str, channels: int, epochs: int) -> str:
    """The step that distils the network into a ResNet of 8 layers whose stem halves the picture."""
    sizes = f"{{depth: 8, channels: {channels}, stem_stride: 2, num_channels: {len(mode)}, image_size: {size}}}"
    student = f"{{family: resnet_cifar, source: {sizes}}}"
    schedule = f"{{epochs: {epochs}, lr: 3.0e-3, batch: 128}}"
    return f"{{use: distill, name: cnn, student: {student}, temperature: 2.0, weight: 0.7, schedule: {schedule}}}"


def efficientnet(weights: Path, data: Path) -> Job:
    """EfficientNet-Lite0 with a new head, tuned on 2,000 images of CIFAR-10 made larger: ImageNet is not free.

    Another 1,000 are the validation part, on which `auto` chooses.
    """
    dense = "{use: finetune, name: dense, schedule: {epochs: 2, lr: 5.0e-4, batch: 32}}"
    sets = (
        f"data.root={cifar10(data, 3000)}", "data.augment=[]", "data.validation=0.3334", f"model.source={weights}",
        "model.family=efficientnet_lite", f"steps=[{dense}]", "reference=dense",
    )  # fmt: skip
    return Job("efficientnet-lite0-cifar10", "resnet-cifar10", sets, 1000, 45)


def cifar10(folder: Path, most: int = 10_000) -> Path:
    """CIFAR-10 as the data source `arrays` reads it, with that many training images."""
    from optin_cnn import CLASSES, decoded

    plain = RUNS / f"cifar10-{most}"
    plain.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        if not (plain / f"{part}.npz").is_file():
            x, y = decoded(sorted(folder.glob(f"{part}*.npz"))[0])
            np.savez(plain / f"{part}.npz", x=x[:most], y=y[:most])
    (plain / "classes.txt").write_text("\n".join(CLASSES) + "\n", "utf-8")
    return plain
