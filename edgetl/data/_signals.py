"""Fields and pre-processing lists of windows of readings and of recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from edgetl.audio import mel_filters
from edgetl.data._fields import Scaling, agreed, normalise
from edgetl.errors import BadInput
from edgetl.examples import Augmentation
from edgetl.operations import MAX_BANDS, MAX_RATE, MAX_SAMPLES, MAX_WINDOW
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

LOW = 20.0
"""Lowest frequency of a spectrogram, in hertz."""

FLOOR = 1e-6
"""Least power in a band, below the noise of 16 bits: silence is not minus infinity."""


class SignalFields(Scaling):
    """What both kinds have in common. What is not given, the backbone decides."""

    @field_validator("augment", check_fields=False)
    @classmethod
    def _no_pictures(cls, given: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
        if given:
            raise ValueError("flip and shift change pictures; leave augment out")
        return given


class AudioFields(SignalFields):
    """How recordings become log-mel spectrograms."""

    rate: int | None = Field(None, ge=1, le=MAX_RATE)  # samples a second; files of another rate are refused
    samples: int | None = Field(None, ge=1, le=MAX_SAMPLES)  # of a recording: the first ones, or silence behind them
    window: int | None = Field(None, ge=2, le=MAX_WINDOW)  # samples of a frame
    hop: int | None = Field(None, ge=1, le=MAX_WINDOW)  # samples between frames
    bands: int | None = Field(None, ge=1, le=MAX_BANDS)


def sensor_operations(fields: SignalFields, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
    """Return the list for windows (readings, channels): channels first, to float, and scaled where asked for.

    Raises:
        BadInput: a field contradicts the backbone, or the backbone reads other windows.

    """
    length, channels = raw.shape
    if (prep.length or length, prep.channels or channels) != (length, channels):
        wanted = f"{prep.length or length} of {prep.channels or channels}"
        problem = f"the windows are {length} readings of {channels} channels, the backbone reads {wanted}"
        raise BadInput(problem, fix=f"set length: {length} and num_channels: {channels} in model.source")
    return {"op": "channels_first"}, {"op": "to_float"}, *normalise(fields, prep, channels)


def audio_operations(fields: AudioFields, prep: Prep) -> tuple[Operation, ...]:
    """Return the list for recordings: decode, pad or trim, log-mel, to float, and scaled where asked for.

    Raises:
        BadInput: a field contradicts the backbone, is nowhere to be had, or does not fit the others.

    """
    found: dict[str, int] = {}
    for name in ("rate", "samples", "window", "hop", "bands"):
        value = agreed(name, getattr(fields, name), getattr(prep, name))
        if value is None:
            raise BadInput(f"data.{name} is not given", fix=f"give data.{name}")
        found[name] = value
    rate, window, bands = found["rate"], found["window"], found["bands"]
    if not found["hop"] <= window <= found["samples"] or rate <= 2 * LOW:
        problem = f"a hop of {found['hop']}, a window of {window} and {found['samples']} samples do not fit each other"
        raise BadInput(problem, fix="choose hop <= window <= samples, and a rate above 40")
    if not mel_filters(rate, window, bands, LOW, rate / 2).any(axis=1).all():
        problem = f"a window of {window} samples does not tell {bands} bands apart"
        raise BadInput(problem, fix="choose a longer window, or fewer bands")
    mel = {"rate": rate, "window": window, "hop": found["hop"], "bands": bands}
    return (
        {"op": "decode_wav", "rate": rate},
        {"op": "pad_or_trim", "samples": found["samples"]},
        {"op": "log_mel", **mel, "low": LOW, "high": rate / 2, "floor": FLOOR},
        {"op": "to_float"},
        *normalise(fields, prep, 1),
    )
