"""The one training loop: plain PyTorch on accelerate, resumable to the bit after every epoch."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from edgetl import store
from edgetl.errors import Diverged, OutOfResources
from edgetl.network.network import Network
from edgetl.recipe.schema import Schedule
from edgetl.train import checkpoint
from edgetl.train.batches import Data, Rows, order, share
from edgetl.train.lesson import Lesson, Term

LOG = logging.getLogger("edgetl")
SAY_EVERY_S = 2.0
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Loop:
    """What stays the same over all epochs of one training."""

    accelerator: Accelerator
    lesson: Lesson
    wrapped: nn.Module  # the lesson, shared out over processes
    optimizer: Optimizer
    data: Data
    schedule: Schedule
    seed: int

    @property
    def steps(self) -> int:
        """Return the optimizer's steps in one epoch."""
        return math.ceil(len(self.data.rows("train")) / self.schedule.batch)


def fit(
    net: Network, data: Data, terms: Sequence[Term], schedule: Schedule, seed: int, work: Path
) -> tuple[Mapping[str, float], ...]:
    """Train the parameters that require a gradient, in place; leave the module in eval mode on the CPU.

    Continues from the checkpoint in `work` where that is of this very training, and removes it at the end.
    Returns what was logged of every epoch: the losses per sample, and loss and accuracy on validation.

    Raises:
        Diverged: a loss or a gradient is not finite.
        OutOfResources: the device's memory does not hold a batch.

    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    lesson = Lesson(net, terms)
    optimizer = AdamW(_groups(lesson, schedule.weight_decay), lr=schedule.lr)
    folder, key = work / "checkpoint", _key(lesson, data, schedule, seed, accelerator)
    wrapped, prepared = accelerator.prepare(lesson, optimizer)
    loop = Loop(accelerator, lesson, wrapped, prepared, data, schedule, seed)
    logs = checkpoint.load(folder, key, lesson, prepared)
    for epoch in range(len(logs), schedule.epochs):
        try:
            logs.append(_epoch(loop, epoch))
        except torch.OutOfMemoryError as error:
            fix = f"lower schedule.batch (now {schedule.batch}), or choose a smaller backbone or input"
            raise OutOfResources(f"no memory left in epoch {epoch + 1} of training", fix=fix) from error
        if accelerator.is_main_process:
            checkpoint.save(folder, key, lesson, prepared, logs)
        accelerator.wait_for_everyone()
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in logs[-1].items())
        _say(loop, (epoch + 1) * loop.steps, text)  # said once it cannot be lost any more
    if accelerator.is_main_process:
        store.remove(folder)
    lesson.to("cpu").eval()
    return tuple(logs)


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then cosine decay towards zero."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _epoch(loop: Loop, epoch: int) -> dict[str, float]:
    """Train one epoch, validate and return what to log; all randomness depends on (seed, epoch, rank) only."""
    torch.manual_seed(_derived(loop.seed, epoch, loop.accelerator.process_index))
    draws = torch.Generator().manual_seed(_derived(loop.seed, epoch))
    rows = order(loop.data.rows("train"), epoch, loop.seed)
    _train_mode(loop.lesson)
    sums: dict[str, float] = {}
    said = time.monotonic()
    for i in range(loop.steps):
        logs = _step(loop, rows[i * loop.schedule.batch :][: loop.schedule.batch], epoch * loop.steps + i, draws)
        sums = {name: sums.get(name, 0.0) + value for name, value in logs.items()}
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            _say(loop, epoch * loop.steps + i + 1, f"step {i + 1}/{loop.steps}")
    _share_tables(loop, rows)
    result = {name: value / len(rows) for name, value in sums.items()} | _validate(loop)
    if not all(math.isfinite(value) for value in result.values()):
        raise _diverged(epoch, loop.steps, loop.schedule)
    return result


def _step(loop: Loop, rows: Rows, step: int, generator: torch.Generator) -> dict[str, float]:
    """Train on one global batch and return its logs, summed over all its samples."""
    accelerator, schedule = loop.accelerator, loop.schedule
    mine = share(len(rows), accelerator.process_index, accelerator.num_processes)
    idle = mine.start == mine.stop  # fewer samples than processes: take part with a weight of zero
    mine = slice(0, 1) if idle else mine
    draws = loop.data.draws(len(rows), generator)
    batch = loop.data.batch(rows[mine], accelerator.device, None if draws is None else draws[mine])
    total = loop.steps * schedule.epochs
    for group in loop.optimizer.param_groups:
        group["lr"] = schedule.lr * rate(step, total, schedule.warmup)
    loss, logs = loop.wrapped(batch, step / total)
    weight = 0.0 if idle else 1.0
    # gradients are averaged over the processes: their number makes that a sum, the count makes it a mean
    accelerator.backward(loss * (weight * accelerator.num_processes / len(rows)))
    norm = accelerator.clip_grad_norm_([p for p in loop.lesson.parameters() if p.requires_grad], schedule.clip)
    if not (torch.isfinite(norm) and torch.isfinite(loss)):
        raise _diverged(step // loop.steps, step % loop.steps + 1, schedule)
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return _summed(accelerator, {"loss": loss.detach(), **logs}, weight)


def _share_tables(loop: Loop, rows: Rows) -> None:
    """Give every process the rows that the others wrote into the losses' tables in this epoch."""
    accelerator, batch = loop.accelerator, loop.schedule.batch
    if accelerator.num_processes == 1:
        return
    parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    own = [p[share(len(p), accelerator.process_index, accelerator.num_processes)] for p in parts]
    mine, every = (torch.from_numpy(np.concatenate(x)) for x in (own, parts))
    for loss in (term.loss for term in loop.lesson.terms):
        for name in loss.tables:
            table = loss.get_buffer(name)
            written = torch.zeros_like(table)
            written[mine] = table[mine]
            table[every] = accelerator.reduce(written, reduction="sum")[every]


def _validate(loop: Loop) -> dict[str, float]:
    """Return loss and accuracy (a share) on the validation part."""
    rows = loop.data.rows("validation")
    accelerator, lesson = loop.accelerator, loop.lesson.eval()
    mine = rows[share(len(rows), accelerator.process_index, accelerator.num_processes)]
    sums = {name: torch.zeros((), device=accelerator.device) for name in ("validation_loss", "validation_accuracy")}
    with torch.no_grad():
        for i in range(0, len(mine), EVALUATION_BATCH):
            batch = loop.data.batch(mine[i : i + EVALUATION_BATCH], accelerator.device)
            logits = lesson.family.logits(lesson.network, batch)
            sums["validation_loss"] += functional.cross_entropy(logits, batch["labels"], reduction="sum")
            sums["validation_accuracy"] += (logits.argmax(-1) == batch["labels"]).sum()
    return {name: value / max(1, len(rows)) for name, value in _summed(accelerator, sums, 1.0).items()}


def _summed(accelerator: Accelerator, logs: Mapping[str, Tensor], weight: float) -> dict[str, float]:
    values = torch.stack([value.detach().float() for value in logs.values()]) * weight
    if accelerator.num_processes > 1:
        values = accelerator.gather_for_metrics(values[None]).sum(0)
    return dict(zip(logs, values.tolist(), strict=True))


def _groups(lesson: nn.Module, weight_decay: float) -> list[dict[str, list[nn.Parameter] | float]]:
    """Return the trained parameters in two groups: biases, norms and other vectors do not decay."""
    trained = [p for p in lesson.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    decays = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in decays if parameters]


def _train_mode(lesson: nn.Module) -> None:
    """Switch to training, except for frozen normalisation layers: their statistics stay too."""
    lesson.train()
    for layer in lesson.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in layer.parameters()):
            layer.eval()


def _key(lesson: Lesson, data: Data, schedule: Schedule, seed: int, accelerator: Accelerator) -> str:
    """Return a digest of all that decides the result of a training."""
    state = hashlib.sha256()
    for name, tensor in (*lesson.named_parameters(), *lesson.named_buffers()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}\n".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    options = [
        [
            type(t.loss).__name__,
            t.weight,
            {k: v for k, v in vars(t.loss).items() if k != "training" and isinstance(v, int | float | str)},
        ]
        for t in lesson.terms
    ]
    host = [torch.__version__, torch.get_num_threads(), accelerator.device.type, accelerator.num_processes]
    return store.digest([state.hexdigest(), data.digest, options, schedule.model_dump(mode="json"), seed, host])


def _derived(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _say(loop: Loop, done: int, text: str) -> None:
    """Log a line of progress; the record's `done` and `total` count optimizer steps, for who draws a bar."""
    if loop.accelerator.is_main_process:
        total = loop.steps * loop.schedule.epochs
        epoch = (done - 1) // loop.steps + 1
        LOG.info("epoch %d/%d  %s", epoch, loop.schedule.epochs, text, extra={"done": done, "total": total})


def _diverged(epoch: int, step: int, schedule: Schedule) -> Diverged:
    problem = f"training diverged: the loss is not finite in epoch {epoch + 1}, step {step}"
    return Diverged(problem, fix=f"lower schedule.lr (now {schedule.lr:g}) or raise schedule.warmup")
