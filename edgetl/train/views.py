"""Transformations of a sample that keep its class, for labels of class and transformation together.

All are exact, can be undone, and start with the identity. Letters: B samples, M views of each, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.operations import Kind

COUNTS = (1, 2, 4)


def check(kind: Kind, count: int, shape: tuple[int, ...]) -> None:
    """Refuse a number of views that the data does not have; `shape` is that of one sample's first input.

    Raises:
        BadInput: neither 1, 2 nor 4, or four rotations of pictures that are not square.

    """
    if count not in COUNTS:
        raise BadInput(f"views: {count} is not known for {kind} data", fix="choose 1, 2 or 4")
    if kind == "image" and count == 4 and shape[-1] != shape[-2]:
        problem = f"views: pictures of {shape[-2]} x {shape[-1]} change their shape in a quarter turn"
        raise BadInput(problem, fix="choose 2 views (half a turn), or square pictures")


def expanded(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the batch with M views of every sample, (B * M, ...) ordered by sample, and their numbers as `view`.

    Pictures: M = 4 the rotations by quarter turns, anticlockwise; M = 2 half a turn. Texts: with the first and last
    token in place, the halves swapped (M = 2), and for M = 4 also reversed, and both. Readings: backwards in time
    (M = 2), and for M = 4 also negated, and both. Spectrograms: backwards (M = 2), and for M = 4 also with the bands
    upside down, and both.
    """
    if "pixel_values" in batch:
        turns = [k * 4 // count for k in range(count)]
        views = {"pixel_values": torch.stack([torch.rot90(batch["pixel_values"], k, (2, 3)) for k in turns], 1)}
    elif "input_values" in batch:
        changed = [signal(batch["input_values"], backwards=bool(k & 1), inverted=bool(k & 2)) for k in range(count)]
        views = {"input_values": torch.stack(changed, 1)}
    else:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        orders = [order(mask, swapped=bool(k & 1), turned=bool(k & 2)) for k in range(count)]
        views = {"input_ids": torch.stack([ids.gather(1, o) for o in orders], 1)}
    rest = {k: v.repeat_interleave(count, 0) for k, v in batch.items() if k not in views}
    number = torch.arange(count, device=batch["index"].device).repeat(len(batch["index"]))
    return rest | {k: v.flatten(0, 1) for k, v in views.items()} | {"view": number}


def signal(values: Tensor, *, backwards: bool, inverted: bool) -> Tensor:
    """Return readings (B, C, T) backwards, negated or both; spectrograms (B, 1, bands, T) turn their bands instead."""
    values = values.flip(-1) if backwards else values
    if not inverted:
        return values
    return values.flip(-2) if values.dim() == 4 else -values


def order(mask: Tensor, *, swapped: bool, turned: bool) -> Tensor:
    """Return (B, T): which token comes to each place; those of an odd middle, the ends and padding stay."""
    place = torch.arange(mask.shape[1], device=mask.device)[None] - 1
    inner = (mask.sum(1, keepdim=True) - 2).clamp(min=0)
    half = inner // 2
    source = place.expand_as(mask)
    if swapped:
        source = torch.where(source < half, source + inner - half, source)
        source = torch.where(place >= inner - half, place - (inner - half), source)
    if turned:
        source = inner - 1 - source
    return torch.where((place >= 0) & (place < inner), source, place) + 1
