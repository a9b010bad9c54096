"""Where the time of an artifact goes, by torch module, as schemas/explain-1.json. [no torch, no runtime]"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from edgetl import store
from edgetl.errors import Refused
from edgetl.explain._explain import Kernel
from edgetl.explain.causes import Cause, causes
from edgetl.measure.capacity import Record
from edgetl.types import Json

if TYPE_CHECKING:
    from rich.table import Table

HOST = "CPUExecutionProvider"
FOLDER = "explain"
MOST_OPERATORS = 20

SLOWED = 1.25
"""Sum of the nodes' times under the profiler over the time of a call, above which it is told."""

COLUMNS = ("block", "ms", "%", "most of it")


class Part(Record):
    """The time of one module's own nodes."""

    module: str  # "" where the file does not say
    ms: float
    share: float
    nodes: int


class Operator(Record):
    """The time of one node, as the runtime calls it."""

    name: str
    op: str
    module: str
    ms: float
    share: float
    provider: str
    dtype: str  # of its first input


class Explained(Record):
    """One artifact under the runtime's profiler, at one thread and batch 1."""

    schema_version: Literal[1] = 1
    bundle_sha256: str
    name: str
    device: str
    runtime: str
    provider: str
    calls: int
    call_ms: float  # median CPU time of a call without the profiler
    kernels_ms: float  # sum of the nodes under it, in wall time: shares are of this
    empty_call_ms: float  # median CPU time of a call of an empty graph
    modules: list[Part]  # in the order of the file
    operators: list[Operator]  # the slowest
    nodes: int
    causes: list[Cause]

    @property
    def overhead(self) -> float:
        """The share of a call that is the runtime's own."""
        return min(1.0, self.empty_call_ms / self.call_ms) if self.call_ms else 0.0


def explained(found: Mapping[str, Json], sha256: str, name: str, device: str) -> Explained:
    """Return what the profiling process found, by module and by operator, with the causes."""
    kernels = [Kernel(**{**k, "types": tuple(k["types"]), "weight": tuple(k["weight"])}) for k in found["kernels"]]
    total = sum(kernel.us for kernel in kernels) or 1.0
    overhead = min(1.0, found["empty_call_us"] / found["call_us"]) if found["call_us"] else 0.0
    slowest = sorted(kernels, key=lambda kernel: -kernel.us)[:MOST_OPERATORS]
    return Explained(
        bundle_sha256=sha256,
        name=name,
        device=device,
        runtime=found["runtime"],
        provider=found["provider"],
        calls=found["calls"],
        call_ms=found["call_us"] / 1e3,
        kernels_ms=sum(kernel.us for kernel in kernels) / 1e3,
        empty_call_ms=found["empty_call_us"] / 1e3,
        modules=_parts(kernels, total),
        operators=[_operator(kernel, total) for kernel in slowest],
        nodes=len(kernels),
        causes=causes(kernels, found["provider"], overhead),
    )


def blocks(parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Return the modules of every block, in the order of the file: of `layers.3.attn.q` that is `layers.3`."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(_block(part.module), []).append(part)
    return list(found.items())


def path(out: Path, device: str, stem: str, sha256: str) -> Path:
    """Return where the explanation of an artifact is kept, under the folder of its measurements."""
    return out / device / FOLDER / f"{stem}-{sha256[:12]}.json"


def read(file: Path) -> Explained:
    """Read an explanation.

    Raises:
        Refused: it is damaged.

    """
    try:
        return Explained.model_validate(store.read_json(file))
    except ValidationError as e:
        key = ".".join(map(str, e.errors()[0]["loc"]))
        fix = "delete the file and run `edgetl profile --explain` again"
        raise Refused(f"{file}: {key}: {e.errors()[0]['msg']}", fix=fix) from e


def of_run(run: Path) -> dict[tuple[str, str], Explained]:
    """Return every explanation of a run, by the sha256 of its bundle and the device."""
    found = [read(file) for file in sorted((run / "measurements").glob(f"*/{FOLDER}/*.json"))]
    return {(one.bundle_sha256, one.device): one for one in found}


def table(one: Explained) -> Table:
    """Return the time by block as a table for the terminal, with the causes below it."""
    from rich.table import Table

    made = Table(*COLUMNS, title=f"where the time of {one.name} goes", title_justify="left")
    for block, parts in blocks(one.modules):
        ms, share = sum(p.ms for p in parts), sum(p.share for p in parts)
        most = sorted(parts, key=lambda part: -part.share)[:3]
        inside = ", ".join(f"{inner(p.module, block)} {100 * p.share:.0f} %" for p in most) if len(parts) > 1 else ""
        made.add_row(block, f"{ms:.3g}", f"{100 * share:.1f}", inside)
    return made


def text(one: Explained) -> str:
    """Return how it was measured and why it is slow, with the fix below each cause."""
    return "\n".join([how(one), *(f"{cause.kind}: {cause.says}\n  fix: {cause.fix}" for cause in one.causes)])


def how(one: Explained) -> str:
    """Return how it was measured."""
    said = (
        f"{one.provider}, one thread, batch 1, {one.calls} calls under the profiler; a call takes {one.call_ms:.3g} ms "
        f"of CPU without it, {100 * one.overhead:.0f} % of that the runtime's own."
    )
    if one.provider != HOST:
        said += " Of a GPU's kernels the profiler sees the start, not the end."
    if all(not part.module for part in one.modules):
        said += " The file names no torch modules: export it again with this edgetl."
    if one.kernels_ms > SLOWED * one.call_ms:
        said += f" The profiler slows small nodes down, to {one.kernels_ms:.3g} ms in all: shares are rough."
    return said


def inner(module: str, block: str) -> str:
    """Return a module's name inside its block."""
    return module.removeprefix(f"{block}.") if module != block else "itself"


def _parts(kernels: Sequence[Kernel], total: float) -> list[Part]:
    us: dict[str, list[float]] = {}
    for kernel in kernels:
        us.setdefault(kernel.module, []).append(kernel.us)
    return [Part(module=m, ms=sum(t) / 1e3, share=sum(t) / total, nodes=len(t)) for m, t in us.items()]


def _operator(kernel: Kernel, total: float) -> Operator:
    return Operator(
        name=kernel.name,
        op=kernel.op,
        module=kernel.module,
        ms=kernel.us / 1e3,
        share=kernel.us / total,
        provider=kernel.provider,
        dtype=next(iter(kernel.types), ""),
    )


def _block(module: str) -> str:
    parts = module.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    end = next((i for i in range(first + 1, len(parts)) if not parts[i].isdigit()), len(parts))
    return ".".join(parts[:end]) or "not named"
