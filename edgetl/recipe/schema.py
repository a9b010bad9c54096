"""The recipe: what to make. [no torch]"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, model_validator

from edgetl.errors import BadHost
from edgetl.strict import Strict
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.device import Device
    from edgetl.measure.measurement import Measurement
    from edgetl.network.network import Network
    from edgetl.roofline import Prediction
    from edgetl.session import Session
    from edgetl.train.batches import Data
    from edgetl.types import Feed

T = TypeVar("T")


@dataclass(frozen=True)
class FanOut:
    """Marks a field whose list of values makes branches."""


Branches = Annotated[T, FanOut()]
"""A field that takes a value or, in YAML, a list of values: one branch each. A step only ever sees one value."""

Need: TypeAlias = Literal["trained", "image", "text", "tokens"]
"""What a step needs of its input: weights that solve the task, a kind of data, or blocks that can merge tokens."""

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class Mix(Strict):
    """Train on mixtures of two samples of a batch, and of their labels."""

    op: Literal["cutmix", "mixup"] = "cutmix"  # a box of the other (arXiv 1905.04899), or a weighted mean (1710.09412)
    alpha: float = Field(1.0, gt=0)  # the share that is the sample's own is drawn from Beta(alpha, alpha)
    probability: float = Field(0.5, gt=0, le=1)  # of a batch to be mixed


def _known(name: str) -> str:
    from edgetl import device  # only a recipe that measures in a step needs it
    from edgetl.plugins import nearest

    if "/" not in name and name not in device.names():
        raise ValueError(f"no device '{name}', {nearest(name, device.names())}")
    return name


DeviceName: TypeAlias = Annotated[str, AfterValidator(_known)]
"""A name that `edgetl devices list` shows, the path of a device file, or ssh://user@host."""


class Schedule(Strict):
    """How long and how fast to train. AdamW, linear warm-up, cosine decay to zero."""

    epochs: int = Field(10, ge=1)  # passes over the training part
    lr: float = Field(5e-4, gt=0)  # the highest learning rate, after the warm-up
    batch: int = Field(32, ge=1)  # samples of one step, shared out over all processes
    weight_decay: float = Field(0.05, ge=0)  # of matrices; biases and norms do not decay
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps
    clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the forward pass; weights stay fp32; fp16 needs a GPU
    ema: float | None = Field(None, gt=0, lt=1)  # ship the moving average of the weights, with this decay per step
    mix: Mix | None = None  # {op: cutmix} or {op: mixup}: train on mixtures of two samples
    by_length: bool = False  # texts of a batch are about equally long, so that few tokens are padding


class Teacher(Strict):
    """Learn from the answers of an earlier step's network (Hinton et al. 2015)."""

    step: str  # name of the earlier step; `source` is the network before the first
    temperature: float = Field(2.0, gt=0)  # above 1 softens both answers before they are compared
    weight: float = Field(0.5, ge=0, le=1)  # of the teacher's term; the labels' term gets the rest


class MaxLatency(Strict):
    """A limit on the median time of one call on a device, in milliseconds or as a share of the uncut network's."""

    device: DeviceName  # a name that `edgetl devices list` shows, the path of a device file, or ssh://user@host
    p50_ms: float | None = Field(None, gt=0, allow_inf_nan=False)  # CPU time where one thread runs, else wall time
    share: float | None = Field(None, gt=0, le=1)  # of the time of the step's input, measured beside it

    @model_validator(mode="after")
    def _one(self) -> MaxLatency:
        if (self.p50_ms is None) == (self.share is None):
            raise ValueError("give one of p50_ms and share")
        return self


class Measured(NamedTuple):
    """One result of a benchmark that earns an option its default, or keeps it from being one."""

    benchmark: str  # benchmarks/NAME.py, whose results/NAME.json holds it
    target: str  # the name of the result there
    value: float
    low: float | None = None  # the ends of its 95 % interval
    high: float | None = None


class Step(Strict, ABC):
    """One method: `Network -> Network`. Every default makes a working step."""

    use: str  # file name in methods/
    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9-]*$|^$")  # folder name and handle for later steps; default: use
    trains: ClassVar[bool] = False  # it fits weights to the labels of this task
    cuts: ClassVar[bool] = False  # it changes the architecture
    needs: ClassVar[frozenset[Need]] = frozenset()
    labels: ClassVar[bool] = False  # its teacher labels the data's unlabelled part
    shared: ClassVar[bool] = False  # what costs time is made once for all branches
    measured: ClassVar[Mapping[str, tuple[Measured, ...]]] = {}  # by field, what a benchmark says of it
    predicts: ClassVar[bool] = False  # a device that is not attached is no error: what it would take is predicted

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes of one sample it costs, for a forecast; backward counts as two."""
        schedule = getattr(self, "schedule", None)
        return 3.0 * rows * schedule.epochs if isinstance(schedule, Schedule) else 0.0

    def again(self, rows: int, units: int) -> float:
        """Return how many of these passes a further branch costs, which shares the rest with the first."""
        return 0.0 if self.shared else self.passes(rows, units)

    def needed(self) -> frozenset[Need]:
        """Return what these settings need of the step's input: `needs`, and what only some of them do."""
        schedule = getattr(self, "schedule", None)
        lengths = isinstance(schedule, Schedule) and schedule.by_length
        return self.needs | {"text"} if lengths else self.needs

    def reads(self) -> tuple[str, ...]:
        """Return the names of the earlier steps it takes from `ctx.past`."""
        return ()

    def sources(self) -> tuple[tuple[str, str | Mapping[str, Json]], ...]:
        """Return (family, source) of weights it takes besides those of earlier steps; their bytes are in its key."""
        return ()

    def devices(self) -> tuple[str, ...]:
        """Return the devices that it measures on, as `load_device` takes them."""
        return ()

    @abstractmethod
    def run(self, net: Network, ctx: Context) -> Network:
        """Return the changed network, plain again; `net` may be consumed."""


def unmeasured(_: Sequence[Network], device: Device) -> Sequence[Measurement]:
    """Refuse to measure: a context that was built without a run's target has nothing to export for.

    Raises:
        BadHost: always.

    """
    raise BadHost(f"nothing can be measured on {device.name} here", fix="run the step as part of a recipe")


def unpredicted(_: Sequence[Network], device: Device) -> Sequence[Prediction]:
    """Refuse to predict, as `unmeasured` refuses to measure.

    Raises:
        BadHost: always.

    """
    raise BadHost(f"nothing can be predicted for {device.name} here", fix="run the step as part of a recipe")


@dataclass(frozen=True)
class Context:
    """All that a step may use besides its input. Built by stages/compress only."""

    data: Data
    seed: int  # of this step on this branch
    work: Path  # scratch folder of this step on this branch; kept until the step is finished
    past: Callable[[str], Network]  # a fresh copy of a step named in reads()
    once: Callable[[str, Mapping[str, Json | Network], Callable[[Path, int], None]], Path]
    """`once(what, parts, make)`: the folder that `make(folder, seed)` filled, made once for all branches."""
    measure: Callable[[Sequence[Network], Device], Sequence[Measurement]] = unmeasured
    """`measure(networks, device)`: exported for the first target and timed together, each with its ratio to the first;
    once measured, it is read again."""
    predict: Callable[[Sequence[Network], Device], Sequence[Prediction]] = unpredicted
    """`predict(networks, device)`: exported for the first target, what they take at best on a device that is away."""


@dataclass(frozen=True)
class Material:
    """What a file may be made with besides the base ONNX file."""

    calibration: tuple[Feed, ...] = ()  # pre-processed batches of the training part, tail applied
    floats: frozenset[str] = frozenset()  # nodes of the base file that keep their precision
    cache: Path | None = None  # a folder for what all lowerings of one base file share, such as ranges


class Target(Protocol):
    """Makes and opens one kind of file: a frozen dataclass in targets/, without torch, onnx or pydantic at its top."""

    use: str  # file name in targets/
    precision: str
    precisions: ClassVar[tuple[str, ...]]  # what a recipe may ask for; "auto" is the fastest that keeps the gates
    refuses: ClassVar[Mapping[str, str]]  # precisions that the runtime does not compute in, and why
    samples: int  # training samples for calibration and repair

    @property
    def calibrates(self) -> bool:
        """Whether `lower` reads calibration batches."""

    def candidates(self, quick: Sequence[str]) -> tuple[Target, ...]:
        """Return what to make: this target, or for "auto" one for each precision worth trying, fp32 first.

        `quick` lists the precisions in which the device computes faster than in fp32, and fp32.
        """

    def nodes(self, base: Path) -> tuple[str, ...]:
        """Return the nodes of the base file whose precision `lower` changes: those that can be given back to float."""

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        """Write the artifact made from the base ONNX file into the folder and return its file name.

        Raises:
            BadInput: the material does not suffice, or the runtime has no form of this network at this precision.

        """

    def dtypes(self, file: Path, names: Sequence[str]) -> Mapping[str, str]:
        """Return the precision in which a lowered file computes each of these nodes of the base file, read back."""

    def session(self) -> dict[str, Json]:
        """Return the runtime options that ship in the manifest and that every Session applies."""

    def needs(self) -> str:
        """Return the oldest version of the runtime that reads the file: ">=1.20"."""

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> Session:
        """Open an artifact, of verified bytes or from its file, on a number of threads (0: the runtime's choice).

        Raises:
            Refused: the runtime cannot read the file.
            BadHost: the provider asked for is not there, or fell back.

        """

    def judge(self, file: Path, threads: int) -> Session:
        """Open a lowered file for its answers: as `open` does, or in a stand-in where this machine lacks its hardware.

        Raises:
            BadHost: nothing here computes as the file does.

        """

    @staticmethod
    def runtime() -> str:
        """Return the runtime and its version: "onnxruntime 1.31.1"."""


class Model(Strict):
    """The backbone: a family, where its weights come from, and the classes."""

    family: str
    source: str | dict[str, Json] = Field(union_mode="left_to_right")  # hub id, folder, or sizes for random weights
    labels: tuple[str, ...] | None = None  # default: the data's


class Gates(Strict):
    """Limits that hold for every student, everywhere. Accuracies in percent, drops in percentage points."""

    accuracy: float | None = Field(None, ge=0, le=100)
    accuracy_drop: float | None = Field(None, ge=0)
    class_drop: float | None = Field(None, ge=0)
    f1: float | None = Field(None, ge=0, le=100)
    agreement: Share | None = None
    faster: bool | None = None  # default: true where latency was measured


class Budget(Strict):
    """Limits that hold on one device."""

    p50_ms: float | None = Field(None, gt=0)  # median time of a call
    p90_ms: float | None = Field(None, gt=0)  # time that nine calls in ten keep
    peak_mb: float | None = Field(None, gt=0)  # peak memory above that of the bare runtime
    size_mb: float | None = Field(None, gt=0)  # of the model's file


class ForDevice(Budget):
    """A value that is left to a device: the best that keeps these limits there. Its branch bears the device's name."""

    device: DeviceName  # a name that `edgetl devices list` shows, the path of a device file, or ssh://user@host

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        named = {name: getattr(self, name) for name in Budget.model_fields}
        return {name: limit for name, limit in named.items() if limit is not None}

    def within(self, budget: Budget) -> Self:
        """Return it with those of a device's limits that it does not set itself."""
        return self.model_copy(update={**budget.model_dump(exclude_none=True), **self.limits})
