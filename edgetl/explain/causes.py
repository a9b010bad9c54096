"""Why a file is slower than its arithmetic: the causes found most often, each with its fix. [no torch, no runtime]"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence

from edgetl.explain._explain import Kernel
from edgetl.explain.attribution import HEAVY, REORDERS
from edgetl.measure.capacity import Record

LEAST = 0.05
"""Share of the time below which a cause is not told."""

MULTIPLE = 16
"""Channels that the runtime's kernels handle at once on wide vectors; others are padded."""

_QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_INTEGERS = ("uint8", "int8")


class Cause(Record):
    """One reason, and what to do about it."""

    kind: str
    share: float  # of the time that it concerns
    says: str
    fix: str


_FIXES: Mapping[str, str] = {
    "overhead": "run several samples in one call; a smaller student gains little more on this runtime",
    "fallback": "export operators that the provider knows, or choose the CPU provider in the device file",
    "reformat": f"keep widths at multiples of {MULTIPLE}, and other operators out from between convolutions",
    "quantize": "quantize the operators between them too, or leave the whole stretch float",
    "float island": "add these operators to what the target quantizes, or ship the float file if it is as fast",
    "signed int8": "quantize activations to uint8: signed ones have no fast kernel on this processor",
    "depthwise int8": "leave depthwise convolutions float",
    "width": f"cut to multiples of {MULTIPLE}, or cut depth or resolution instead",
}


def causes(kernels: Sequence[Kernel], provider: str, overhead: float) -> list[Cause]:
    """Return the causes that concern a noticeable share of the time, the largest first.

    `overhead` is the share of a call that a call of an empty graph takes.
    """
    total = sum(kernel.us for kernel in kernels) or 1.0
    found = [("overhead", overhead, "of a call is the runtime's own, whatever the graph")]
    for kind, says, concerned in _concerned(kernels, provider):
        share = sum(kernel.us for kernel in concerned) / total
        found.append((kind, share, says + _where(concerned)))
    told = [Cause(kind=k, share=s, says=f"{100 * s:.0f} % {says}", fix=_FIXES[k]) for k, s, says in found if s >= LEAST]
    return sorted(told, key=lambda cause: -cause.share)


def is_integer(kernel: Kernel) -> bool:
    """Say whether a kernel computes with integers, and does not only convert."""
    return kernel.op not in _QUANTIZING and kernel.node in HEAVY and bool(set(kernel.types) & set(_INTEGERS))


def _concerned(kernels: Sequence[Kernel], provider: str) -> Iterator[tuple[str, str, list[Kernel]]]:
    integers = any(map(is_integer, kernels))
    tests: Sequence[tuple[str, str, Callable[[Kernel], bool]]] = (
        ("fallback", f"of the time is not on {provider}", lambda k: bool(k.provider) and k.provider != provider),
        ("reformat", "of the time changes the layout", lambda k: k.op in REORDERS or _inserted(k)),
        ("quantize", "of the time converts between float and int8", lambda k: k.op in _QUANTIZING),
        ("float island", "of the time is float matrix work in an int8 file", lambda k: integers and _is_float(k)),
        ("signed int8", "of the time is int8 with signed activations", _is_signed),
        ("depthwise int8", "of the time is int8 depthwise convolution", lambda k: is_integer(k) and _depthwise(k)),
        ("width", f"of the time is at widths off the multiple of {MULTIPLE}", _is_odd),
    )
    for kind, says, test in tests:
        yield kind, says, [kernel for kernel in kernels if test(kernel)]


def _inserted(kernel: Kernel) -> bool:
    return not kernel.node and kernel.op in ("Transpose", "Cast")


def _is_float(kernel: Kernel) -> bool:
    return kernel.node in HEAVY and bool(kernel.weight) and not is_integer(kernel)


def _is_signed(kernel: Kernel) -> bool:
    here = platform.machine().lower() in ("x86_64", "amd64")
    return here and is_integer(kernel) and kernel.types[0] == "int8"


def _depthwise(kernel: Kernel) -> bool:
    return kernel.group > 1 and len(kernel.weight) > 1 and kernel.weight[1] == 1


def _is_odd(kernel: Kernel) -> bool:
    if kernel.node not in HEAVY or len(kernel.weight) < 2:
        return False
    return kernel.weight[0 if kernel.group else -1] % MULTIPLE != 0


def _where(concerned: Sequence[Kernel]) -> str:
    """Name the places that take longest."""
    took: dict[str, float] = {}
    for kernel in concerned:
        took[kernel.module or kernel.op] = took.get(kernel.module or kernel.op, 0) + kernel.us
    names = sorted(took, key=lambda name: -took[name])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f": {', '.join(names[:3])}{more}" if names else ""
