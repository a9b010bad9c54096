"""The fastest file that keeps the gates, of several targets and the precisions a device is quick in [no torch].

What ships is a bundle of one of those targets; no bundle names this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgetl import plugins
from edgetl.targets.onnx import Onnx

if TYPE_CHECKING:
    from edgetl.recipe.schema import Material, Target
    from edgetl.session import Session
    from edgetl.types import Json


@dataclass(frozen=True)
class Auto:
    """The choice between targets. Before anything is tried, it stands for an ONNX file at fp32."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    precisions: ClassVar[tuple[str, ...]] = ("auto",)
    refuses: ClassVar[Mapping[str, str]] = {}

    use: Literal["auto"] = "auto"
    precision: Literal["auto"] = "auto"
    among: tuple[str, ...] = ("onnx", "openvino", "trt")  # targets; one whose runtime is not here is rejected
    samples: int = 128  # of the training part, for calibration and repair

    def __post_init__(self) -> None:
        """Refuse values that make no file; a recipe reports them with its other errors."""
        known = tuple(name for name in plugins.names("targets") if name != self.use)
        if not self.among or len(set(self.among)) < len(self.among) or not set(self.among) <= set(known):
            raise ValueError(f"`among` lists some of these targets, each once: {', '.join(known)}")
        if self.samples < 1:
            raise ValueError("samples must be at least 1")

    @property
    def calibrates(self) -> bool:
        """Whether `lower` reads calibration batches: only what it chooses from does."""
        return False

    def candidates(self, quick: Sequence[str]) -> tuple[Target, ...]:
        """Return the candidates of every target, each target's fp32 first."""
        every = (plugins.find("targets", name)(precision="auto", samples=self.samples) for name in self.among)
        return tuple(candidate for target in every for candidate in target.candidates(quick))

    def nodes(self, base: Path) -> tuple[str, ...]:
        """Return nothing: what it stands for changes no node."""
        return Onnx().nodes(base)

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        """Write what it stands for into the folder and return its file name."""
        return Onnx().lower(base, folder, material)

    def dtypes(self, file: Path, names: Sequence[str]) -> Mapping[str, str]:
        """Return the precision in which what it stands for computes each of these nodes."""
        return Onnx().dtypes(file, names)

    def session(self) -> dict[str, Json]:
        """Return the runtime options of what it stands for."""
        return Onnx().session()

    def needs(self) -> str:
        """Return the oldest version of the runtime that reads what it stands for."""
        return Onnx().needs()

    def judge(self, file: Path, threads: int) -> Session:
        """Open what it stands for."""
        return Onnx().judge(file, threads)

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> Session:
        """Open what it stands for, as the target `onnx` does."""
        return Onnx.open(file, options, threads)

    @staticmethod
    def runtime() -> str:
        """Return the runtime of what it stands for, and its version."""
        return Onnx.runtime()


PLUGIN = Auto
