"""A network's answers over the data, and the losses that learn from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.errors import BadInput
from edgetl.losses.labels import Labels
from edgetl.losses.logits import Logits
from edgetl.network.network import Network
from edgetl.train.batches import Data, Rows
from edgetl.train.lesson import Term

if TYPE_CHECKING:
    from edgetl.recipe.schema import Context, Teacher

BATCH = 64


def answers(net: Network, data: Data, rows: Rows) -> NDArray[np.float32]:
    """Return the logits (len(rows), labels) of a network in eval mode, without augmentation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = net.module.training
    net.module.eval().to(device)
    with torch.no_grad():
        parts = [
            net.family.logits(net.module, data.batch(rows[i : i + BATCH], device)).float().cpu()
            for i in range(0, len(rows), BATCH)
        ]
    net.module.to("cpu").train(training)
    return torch.cat(parts).numpy() if parts else np.zeros((0, len(net.labels)), np.float32)


def terms(net: Network, teacher: Teacher | None, ctx: Context, smoothing: float = 0.0) -> list[Term]:
    """Return the losses of a step on labels and, where there is one, a teacher's answers.

    The teacher's answers are those on clean inputs, also where the training batches are augmented.

    Raises:
        BadInput: the teacher answers with other labels.

    """
    if teacher is None:
        return [Term(Labels(smoothing))]
    return taught(net, ctx.past(teacher.step), teacher, ctx, smoothing)


def taught(net: Network, source: Network, teacher: Teacher, ctx: Context, smoothing: float = 0.0) -> list[Term]:
    """Return the losses of `net` on labels and on the answers of `source`, weighted as `teacher` says."""
    if source.labels != net.labels:
        fix = "teach with a network of the same labels"
        raise BadInput(
            f"teacher '{teacher.step}' has {len(source.labels)} labels that differ from the student's", fix=fix
        )
    logits = Logits(torch.from_numpy(table(source, ctx)), teacher.temperature)
    both = [Term(Labels(smoothing), 1 - teacher.weight), Term(logits, teacher.weight)]
    return [term for term in both if term.weight > 0]


def table(source: Network, ctx: Context) -> NDArray[np.float32]:
    """Return a teacher's logits (N, labels) by row of the data, NaN outside of training, made once for all branches."""
    parts: Mapping[str, Network] = {"teacher": source}

    def make(folder: Path, seed: int) -> None:
        every = np.full((len(ctx.data.prepared.y), len(source.labels)), np.nan, np.float32)
        rows = ctx.data.rows("train")
        every[rows] = answers(source, ctx.data, rows)
        np.save(folder / "logits.npy", every, allow_pickle=False)

    loaded: NDArray[np.float32] = np.load(ctx.once("answers", parts, make) / "logits.npy", allow_pickle=False)
    return loaded
