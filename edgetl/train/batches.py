"""Batches of prepared examples as tensors, in one seeded global order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgetl.examples import UNLABELLED, Augmentation, Part
from edgetl.prepare import Prepared
from edgetl.types import Array, Operation

Rows: TypeAlias = NDArray[np.int64]
Batch: TypeAlias = dict[str, Tensor]

DEVICE_SHARE = 0.25
"""Share of a device's free memory that the examples may take."""

WINDOW = 32
"""Batches whose samples are sorted together, where batches are of one length."""


class Data:
    """Prepared examples; `batch` hands them out with the tail of the pre-processing applied."""

    def __init__(self, prepared: Prepared, augment: Sequence[Augmentation] = ()) -> None:
        self.prepared = prepared
        self.augment = tuple(augment)
        self.labels = prepared.labels
        self.digest = _digest(prepared.digest, self.augment)
        self._resident: dict[torch.device, dict[str, Tensor]] = {}

    def rows(self, part: Part) -> Rows:
        """Return the row numbers of a part, none where there is no such part."""
        return self.prepared.splits.get(part, np.zeros(0, np.int64))

    def labelled(self, y: Rows, teacher: str) -> Data:
        """Return the data with its unlabelled rows in the training part, under class numbers of a teacher's digest."""
        rows, known = self.rows(UNLABELLED), self.prepared
        every = known.y.copy()
        every[rows] = y
        splits = {**known.splits, "train": np.sort(np.append(self.rows("train"), rows)), UNLABELLED: rows[:0]}
        digest = hashlib.sha256(f"{known.digest} {teacher}".encode()).hexdigest()
        made = Data(replace(known, y=every, splits=splits, digest=digest), self.augment)
        made._resident = self._resident  # the inputs are the same
        return made

    def extended(self, inputs: Mapping[str, Array]) -> Data:
        """Return the data with these inputs, each (N, ...), behind it as more unlabelled rows."""
        known, count = self.prepared, len(next(iter(inputs.values())))
        rows = np.arange(len(known.y), len(known.y) + count)
        every = {name: np.concatenate([values, inputs[name]]) for name, values in known.inputs.items()}
        splits = {**known.splits, UNLABELLED: np.append(self.rows(UNLABELLED), rows)}
        digest = hashlib.sha256(known.digest.encode())
        for name in sorted(inputs):
            digest.update(np.ascontiguousarray(inputs[name]).tobytes())
        y = np.append(known.y, np.full(count, -1))
        return Data(replace(known, y=y, splits=splits, inputs=every, digest=digest.hexdigest()), self.augment)

    def batch(self, rows: Rows, device: str | torch.device = "cpu", draws: Tensor | None = None) -> Batch:
        """Return the inputs of the rows, `labels` (B,) and `index` (B,); with draws (B, ops, 2), augmented."""
        inputs = self._take(rows, torch.device(device))
        if draws is not None:
            inputs["pixel_values"] = augmented(inputs["pixel_values"], self.augment, draws.to(device))
        batch = tail(inputs, self.prepared.operations)
        batch["labels"] = torch.from_numpy(self.prepared.y[rows]).to(device)
        batch["index"] = torch.from_numpy(np.asarray(rows, np.int64).copy()).to(device)
        return batch

    def draws(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return uniform numbers (count, ops, 2) that decide the augmentation of as many samples, if any."""
        if not self.augment or "pixel_values" not in self.prepared.inputs:
            return None
        return torch.rand(count, len(self.augment), 2, generator=generator)

    def mean_tokens(self) -> int | None:
        """Return the mean true length of the training texts, rounded up; None where there is no text."""
        lengths = self.lengths(self.rows("train"))
        return None if lengths is None else math.ceil(float(lengths.mean()))

    def lengths(self, rows: Rows) -> NDArray[np.int64] | None:
        """Return the true lengths in tokens of the texts of these rows; None where there is no text."""
        mask = self.prepared.inputs.get("attention_mask")
        return None if mask is None else np.asarray(mask[rows].sum(axis=1, dtype=np.int64))

    def shortest_first(self, rows: Rows) -> NDArray[np.int64]:
        """Return the places in `rows`, those of short texts first: batches taken so are hardly padded."""
        lengths = self.lengths(rows)
        return np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")

    def _take(self, rows: Rows, device: torch.device) -> Batch:
        if device.type != "cuda":  # read from the memory map: only the rows of the batch are touched
            return {name: torch.from_numpy(array[rows]).to(device) for name, array in self.prepared.inputs.items()}
        if device not in self._resident:
            fits = sum(a.nbytes for a in self.prepared.inputs.values()) < DEVICE_SHARE * torch.cuda.mem_get_info()[0]
            arrays = self.prepared.inputs if fits else {}
            self._resident[device] = {name: torch.tensor(np.asarray(a)).to(device) for name, a in arrays.items()}
        resident = self._resident[device]
        if not resident:
            return {name: torch.from_numpy(array[rows]).to(device) for name, array in self.prepared.inputs.items()}
        index = torch.from_numpy(np.asarray(rows, np.int64).copy()).to(device)
        return {name: tensor[index] for name, tensor in resident.items()}


def tail(inputs: Mapping[str, Tensor], operations: Sequence[Operation]) -> Batch:
    """Return what `Preprocess.tail` returns for the same arrays, in torch; texts trimmed to the longest."""
    batch = dict(inputs)
    name = next((name for name in ("pixel_values", "input_values") if name in batch), "")
    for operation in operations:
        if operation["op"] == "to_float":
            batch[name] = _to_float(batch[name])
        elif operation["op"] == "normalise":
            shape = (1, -1) + (1,) * (batch[name].dim() - 2)
            mean = torch.tensor(operation["mean"], dtype=torch.float32, device=batch[name].device).view(shape)
            std = torch.tensor(operation["std"], dtype=torch.float32, device=batch[name].device).view(shape)
            batch[name] = (batch[name] - mean) / std
    if "attention_mask" in batch:
        longest = max(1, int(batch["attention_mask"].sum(1, dtype=torch.int64).max()))
        for name in ("input_ids", "attention_mask"):
            batch[name] = batch[name][:, :longest].long()
    return batch


def augmented(pixels: Tensor, operations: Sequence[Augmentation], draws: Tensor) -> Tensor:
    """Return (B, C, H, W) pixels changed at random as draws (B, ops, 2) in [0, 1) decide; new edges are black."""
    for k, operation in enumerate(operations):
        if operation.op == "flip":
            pixels = torch.where(draws[:, k, 0].view(-1, 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
        else:
            pixels = _shift(pixels, operation.pixels, draws[:, k])
    return pixels


def order(rows: Rows, epoch: int, seed: int) -> Rows:
    """Return the rows in the order of this epoch, the same in every process."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def alike(rows: Rows, lengths: NDArray[np.int64], batch: int, draw: Sequence[int]) -> Rows:
    """Return the rows so that those of one batch are about equally long, by their `lengths` (len(rows),).

    Windows of the order given are sorted by length and cut into batches, whose order is drawn anew: what
    `group_by_length` does in transformers' Trainer. The rows of a last, smaller batch stay as they are.
    """
    whole, window = len(rows) // batch * batch, WINDOW * batch
    places = [i + np.argsort(lengths[i : min(i + window, whole)], kind="stable") for i in range(0, whole, window)]
    batches = np.concatenate([*places, np.zeros(0, np.int64)]).reshape(-1, batch)
    drawn = np.random.default_rng(draw).permutation(len(batches))
    return np.append(rows[batches[drawn].ravel()], rows[whole:])


def parts(rows: Rows, batch: int) -> list[Rows]:
    """Return the global batches of an epoch; a last one of a single sample, which has no variance, joins another."""
    ends = list(range(batch, len(rows), batch))
    if ends and batch > 1 and len(rows) - ends[-1] == 1:
        ends.pop()
    return np.split(rows, ends)


def share(count: int, rank: int, ranks: int) -> slice:
    """Return the slice of a global batch of `count` samples that a rank takes; lengths differ by at most one."""
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def _to_float(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _shift(pixels: Tensor, most: int, draws: Tensor) -> Tensor:
    height, width = pixels.shape[2:]
    offsets = (draws * (2 * most + 1)).long()  # (B, 2) in [0, 2 * most]: into the padded picture
    padded = functional.pad(pixels, (most, most, most, most))
    y = offsets[:, :1] + torch.arange(height, device=pixels.device)
    x = offsets[:, 1:] + torch.arange(width, device=pixels.device)
    sample = torch.arange(len(pixels), device=pixels.device)
    return padded[sample[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _digest(prepared: str, augment: tuple[Augmentation, ...]) -> str:
    if not augment:
        return prepared
    parts = [prepared, *(a.model_dump(mode="json") for a in augment)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
