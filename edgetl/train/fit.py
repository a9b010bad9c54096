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
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from edgetl import store
from edgetl.errors import BadInput, Diverged, OutOfResources
from edgetl.network.network import Network
from edgetl.recipe.schema import Schedule
from edgetl.train import checkpoint, precision, record
from edgetl.train.average import adopt, averaged
from edgetl.train.batches import Batch, Data, Rows, alike, order, parts, share
from edgetl.train.layout import groups, lay_out
from edgetl.train.lesson import Lesson, Term
from edgetl.train.mixing import Mixing
from edgetl.train.normalisation import frozen, norms, recalibrated, shared
from edgetl.train.precision import DTYPES, Stepper

LOG = logging.getLogger("edgetl")
SAY_EVERY_S = 2.0
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Loop:
    """What stays the same over all epochs of one training."""

    accelerator: Accelerator
    lesson: Lesson
    wrapped: nn.Module  # the lesson, shared out over processes
    stepper: Stepper
    average: AveragedModel | None  # of the network's weights, where it is what ships
    data: Data
    schedule: Schedule
    seed: int

    @property
    def steps(self) -> int:
        """Return the optimizer's steps in one epoch."""
        return len(parts(self.data.rows("train"), self.schedule.batch))

    @property
    def ships(self) -> nn.Module:
        """Return the network as it will be when training ends."""
        return self.lesson.network if self.average is None else self.average.module

    def state(self) -> nn.Module:
        """Return all that a checkpoint holds besides the optimizer's."""
        parts = {"lesson": self.lesson, "stepper": self.stepper}
        return nn.ModuleDict(parts if self.average is None else {**parts, "average": self.average})


def fit(
    net: Network, data: Data, terms: Sequence[Term], schedule: Schedule, seed: int, work: Path
) -> tuple[Mapping[str, float], ...]:
    """Train the parameters that require a gradient, in place; leave the module in eval mode on the CPU.

    Continues from the checkpoint in `work` where that is of this very training, and removes it at the end. Where the
    network will see other inputs than training did, or ships averaged weights, its statistics are taken again.
    Returns what was logged of every epoch: the losses per sample, and loss and accuracy on validation.

    Raises:
        BadHost: the device does not compute in the schedule's precision.
        BadInput: batches are too small for batch normalisation.
        Diverged: a loss or a gradient is not finite.
        OutOfResources: the device's memory does not hold a batch.

    """
    loop = _prepared(net, data, terms, schedule, seed)
    accelerator, optimizer = loop.accelerator, loop.stepper.optimizer
    folder, key = work / "checkpoint", _key(loop)
    logs = checkpoint.load(folder, key, loop.state(), optimizer)
    for epoch in range(len(logs), schedule.epochs):
        try:
            logs.append(_epoch(loop, epoch))
        except torch.OutOfMemoryError as error:
            fix = f"lower schedule.batch (now {schedule.batch}), or choose a smaller backbone or input"
            raise OutOfResources(f"no memory left in epoch {epoch + 1} of training", fix=fix) from error
        if accelerator.is_main_process:
            checkpoint.save(folder, key, loop.state(), optimizer, logs)
        accelerator.wait_for_everyone()
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in logs[-1].items())
        _say(loop, (epoch + 1) * loop.steps, text)  # said once it cannot be lost any more
    _finish(loop, net)
    if accelerator.is_main_process:
        record.write(work, logs, terms)
        store.remove(folder)
    return tuple(logs)


def _prepared(net: Network, data: Data, terms: Sequence[Term], schedule: Schedule, seed: int) -> Loop:
    # statistics and tables are shared at the end of an epoch, not overwritten by the first process in every step
    spread = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[spread])
    precision.check(schedule.precision, accelerator.device)
    _check_samples(net, min(schedule.batch, len(data.rows("train"))), accelerator.num_processes)
    lesson = Lesson(net, terms, DTYPES[schedule.precision])
    lay_out(lesson, torch.channels_last if accelerator.device.type == "cpu" else torch.contiguous_format)
    wrapped = accelerator.prepare(lesson)
    optimizer = AdamW(groups(lesson, schedule.weight_decay), lr=schedule.lr, fused=True)
    stepper = Stepper(optimizer, schedule.clip, schedule.precision, accelerator.device)
    average = None if schedule.ema is None else averaged(net.module, schedule.ema)
    return Loop(accelerator, lesson, wrapped, stepper, average, data, schedule, seed)


def _check_samples(net: Network, batch: int, processes: int) -> None:
    """Check that every process has two samples of a batch, where there are statistics to be taken of them."""
    if batch < 2 * processes and any(not frozen(layer) for layer in norms(net.module)):
        problem = f"batch normalisation needs two samples in each of {processes} processes, a batch has {batch}"
        raise BadInput(problem, fix=f"raise schedule.batch to {2 * processes} or more, or train on more samples")


def _finish(loop: Loop, net: Network) -> None:
    """Leave the network with the weights and statistics that it ships with."""
    if loop.average is not None:
        adopt(net.module, loop.average)
    lay_out(loop.lesson, torch.contiguous_format)
    loop.lesson.to("cpu").eval()
    unlike = loop.schedule.mix is not None or any(term.loss.views > 1 for term in loop.lesson.terms)
    if unlike or loop.average is not None:
        recalibrated(net, loop.data)


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
    rows = _order(loop, epoch)
    _train_mode(loop.lesson)
    sums: dict[str, float] = {}
    said = time.monotonic()
    for i, part in enumerate(parts(rows, loop.schedule.batch)):
        logs = _step(loop, part, epoch * loop.steps + i, draws)
        sums = {name: sums.get(name, 0.0) + value for name, value in logs.items()}
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            _say(loop, epoch * loop.steps + i + 1, f"step {i + 1}/{loop.steps}")
    _share_tables(loop, rows)
    for module in (loop.lesson.network, loop.ships):
        shared(module, loop.accelerator)
    result = {name: value / len(rows) for name, value in sums.items()} | _validate(loop)
    if not all(math.isfinite(value) for value in result.values()):
        raise _diverged(epoch, loop.steps, loop.schedule)
    return result


def _order(loop: Loop, epoch: int) -> Rows:
    """Return the rows of the training part as this epoch takes them."""
    rows, batch = order(loop.data.rows("train"), epoch, loop.seed), loop.schedule.batch
    if not loop.schedule.by_length:
        return rows
    lengths = loop.data.lengths(rows)
    if lengths is None:
        raise BadInput("schedule.by_length: the data has no texts", fix="leave by_length out: all samples are equal")
    return alike(rows, lengths, batch, [loop.seed, epoch, batch])


def _step(loop: Loop, rows: Rows, step: int, generator: torch.Generator) -> dict[str, float]:
    """Train on one global batch and return its logs, summed over all its samples."""
    accelerator, schedule = loop.accelerator, loop.schedule
    mine = share(len(rows), accelerator.process_index, accelerator.num_processes)
    idle = mine.start == mine.stop  # fewer samples than processes: take part with a weight of zero
    batch = _batch(loop, rows, slice(0, 1) if idle else mine, step, generator)
    total = loop.steps * schedule.epochs
    for group in loop.stepper.optimizer.param_groups:
        group["lr"] = schedule.lr * rate(step, total, schedule.warmup)
    loss, logs = loop.wrapped(batch, step / total)
    weight = 0.0 if idle else 1.0
    # gradients are averaged over the processes: their number makes that a sum, the count makes it a mean
    if not loop.stepper.step(loss * (weight * accelerator.num_processes / len(rows))):
        raise _diverged(step // loop.steps, step % loop.steps + 1, schedule)
    if loop.average is not None:
        loop.average.update_parameters(loop.lesson.network)
    return _summed(accelerator, {"loss": loss.detach(), **logs}, weight)


def _batch(loop: Loop, rows: Rows, mine: slice, step: int, generator: torch.Generator) -> Batch:
    """Return a part of a global batch, augmented, and mixed where the schedule says so."""
    device, mix = loop.accelerator.device, loop.schedule.mix
    draws = loop.data.draws(len(rows), generator)
    batch = loop.data.batch(rows[mine], device, None if draws is None else draws[mine])
    if mix is None:
        return batch
    mixing = Mixing(mix, len(rows), [loop.seed, step])
    partner = mixing.partner[mine]
    return mixing.mixed(batch, loop.data.batch(rows[partner], device, None if draws is None else draws[partner]))


def _share_tables(loop: Loop, rows: Rows) -> None:
    """Give every process the rows that the others wrote into the losses' tables in this epoch."""
    accelerator = loop.accelerator
    if accelerator.num_processes == 1:
        return
    every = parts(rows, loop.schedule.batch)
    own = [p[share(len(p), accelerator.process_index, accelerator.num_processes)] for p in every]
    mine, all_rows = (torch.from_numpy(np.concatenate(x)) for x in (own, every))
    for loss in (term.loss for term in loop.lesson.terms):
        for name in loss.tables:
            table = loss.get_buffer(name)
            written = torch.zeros_like(table)
            written[mine] = table[mine]
            table[all_rows] = accelerator.reduce(written, reduction="sum")[all_rows]


def _validate(loop: Loop) -> dict[str, float]:
    """Return loss and accuracy (a share) on the validation part."""
    rows = loop.data.rows("validation")
    accelerator, family, module = loop.accelerator, loop.lesson.family, loop.ships
    loop.lesson.eval()
    module.eval()
    mine = rows[share(len(rows), accelerator.process_index, accelerator.num_processes)]
    mine = mine[loop.data.shortest_first(mine)]
    sums = {name: torch.zeros((), device=accelerator.device) for name in ("validation_loss", "validation_accuracy")}
    with torch.no_grad():
        for i in range(0, len(mine), EVALUATION_BATCH):
            batch = loop.data.batch(mine[i : i + EVALUATION_BATCH], accelerator.device)
            logits = family.logits(module, batch)
            sums["validation_loss"] += functional.cross_entropy(logits, batch["labels"], reduction="sum")
            sums["validation_accuracy"] += (logits.argmax(-1) == batch["labels"]).sum()
    return {name: value / max(1, len(rows)) for name, value in _summed(accelerator, sums, 1.0).items()}


def _summed(accelerator: Accelerator, logs: Mapping[str, Tensor], weight: float) -> dict[str, float]:
    values = torch.stack([value.detach().float() for value in logs.values()]) * weight
    if accelerator.num_processes > 1:
        values = accelerator.gather_for_metrics(values[None]).sum(0)
    return dict(zip(logs, values.tolist(), strict=True))


def _train_mode(lesson: nn.Module) -> None:
    """Switch to training, except for frozen normalisation layers: their statistics stay too."""
    lesson.train()
    for layer in norms(lesson):
        if frozen(layer):
            layer.eval()


def _key(loop: Loop) -> str:
    """Return a digest of all that decides the result of a training."""
    state = hashlib.sha256()
    for name, tensor in (*loop.lesson.named_parameters(), *loop.lesson.named_buffers()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}\n".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    options = [
        [
            type(t.loss).__name__,
            t.weight,
            {k: v for k, v in vars(t.loss).items() if k != "training" and isinstance(v, int | float | str)},
        ]
        for t in loop.lesson.terms
    ]
    accelerator = loop.accelerator
    host = [torch.__version__, torch.get_num_threads(), accelerator.device.type, accelerator.num_processes]
    schedule = loop.schedule.model_dump(mode="json")
    return store.digest([state.hexdigest(), loop.data.digest, options, schedule, loop.seed, host])


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
