"""Recordings as samples, and their log-mel spectrograms, in numpy and the standard library. [no torch]

Letters: T samples, F frames, W samples of a frame, K bands.
"""

from __future__ import annotations

import io
import math
import os
import struct
import wave
from functools import lru_cache
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput
from edgetl.operations import MAX_SAMPLES
from edgetl.types import Array

Samples: TypeAlias = NDArray[np.float32]

MAX_BYTES = 4 * MAX_SAMPLES + 10**6
"""Largest file: two channels of 16 bits, and other chunks beside them."""

BROKEN = (wave.Error, EOFError, OSError, ValueError, RuntimeError, struct.error)
"""What the wave module raises for damaged files."""

FULL = 32768.0
"""Of 16-bit samples: what becomes 1."""


def decode(value: object, rate: int) -> Samples:
    """Return the samples (T,) in [-1, 1] of a path, the bytes of a WAV file, or an array; channels are averaged.

    Files are 16-bit PCM with one or two channels, arrays (T,) or (T, channels) of int16, or of floats as they are.

    Raises:
        BadInput: it is no such recording, is damaged, has no sample or too many, or another rate: nothing is resampled.

    """
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(value), f"{len(value)} bytes", len(value), rate)
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        try:
            with open(name, "rb") as file:
                return _from_file(file, str(name), os.fstat(file.fileno()).st_size, rate)
        except OSError as error:
            raise BadInput(f"{name}: {error.strerror}", fix="give the path of a WAV file") from error
    kinds = "a path, the bytes of a WAV file, or an array of samples"
    raise BadInput(f"a recording is wanted, not {type(value).__name__}", fix=f"give {kinds}")


def pad_or_trim(x: Samples, samples: int) -> Samples:
    """Return the first samples, followed by silence where there are fewer."""
    return np.pad(x[:samples], (0, max(0, samples - len(x))))


def frames(samples: int, window: int, hop: int) -> int:
    """Return how many whole frames a recording has."""
    return 1 + (samples - window) // hop


def log_mel(x: Samples, window: int, hop: int, filters: NDArray[np.float64], floor: float) -> NDArray[np.float32]:
    """Return (1, K, F): the logarithm of the power in every band and frame, at least `floor`.

    The power is the squared magnitude of the Fourier transform of a frame under a periodic Hann window, computed in
    float64; `filters` (K, W / 2 + 1) are those of `mel_filters`.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    framed = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), window)[::hop]
    power = np.abs(np.fft.rfft(framed * hann)) ** 2
    logs: NDArray[np.float64] = np.log(np.maximum(filters @ power.T, floor))
    return logs.astype(np.float32)[None]


@lru_cache(maxsize=8)
def mel_filters(rate: int, window: int, bands: int, low: float, high: float) -> NDArray[np.float64]:
    """Return (K, W / 2 + 1): triangles of height 1, evenly spread from `low` to `high` Hz on the mel scale.

    The scale is m = 2595 log10(1 + f / 700) (O'Shaughnessy 1987), as in HTK.
    """
    first, last = (2595 * math.log10(1 + f / 700) for f in (low, high))
    mels = np.linspace(first, last, bands + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    f = np.arange(window // 2 + 1) * (rate / window)
    left, middle, right = (corners[i : i + bands, None] for i in range(3))
    found: NDArray[np.float64] = np.maximum(0, np.minimum((f - left) / (middle - left), (right - f) / (right - middle)))
    found.setflags(write=False)  # every caller gets the same array
    return found


def _from_array(x: Array) -> Samples:
    shaped = x.ndim == 1 or (x.ndim == 2 and x.shape[1] in (1, 2))
    if not shaped or not (x.dtype == np.int16 or x.dtype.kind == "f") or not 1 <= len(x) <= MAX_SAMPLES:
        problem = f"samples (T,) or (T, channels) of int16 or float are wanted, not {x.shape} {x.dtype}"
        raise BadInput(problem, fix="give one recording of one or two channels")
    plain = x.astype(np.float32) / np.float32(FULL if x.dtype == np.int16 else 1)
    if not np.isfinite(plain).all():
        raise BadInput("the recording holds NaN or infinity", fix="give samples from -1 to 1")
    return plain if x.ndim == 1 else plain.mean(axis=1)


def _from_file(file: IO[bytes], name: str, size: int, rate: int) -> Samples:
    if size > MAX_BYTES:
        raise BadInput(f"{name}: larger than {MAX_BYTES // 10**6} MB", fix="cut the recording into shorter ones")
    try:
        with wave.open(file, "rb") as found:
            _check_format(found, name, rate)
            channels, count = found.getnchannels(), found.getnframes()
            data = found.readframes(count)
    except BROKEN as error:
        fix = "give a WAV file of 16-bit PCM: ffmpeg -i FILE -c:a pcm_s16le OUT.wav"
        raise BadInput(f"{name}: no readable WAV file ({str(error) or 'it ends early'})", fix=fix) from error
    if len(data) != 2 * channels * count or not count:
        raise BadInput(f"{name}: its header promises {count} samples, not what follows", fix="replace the file")
    return _from_array(np.frombuffer(data, "<i2").astype(np.int16).reshape(count, channels))


def _check_format(found: wave.Wave_read, name: str, rate: int) -> None:
    if found.getsampwidth() != 2 or found.getnchannels() not in (1, 2):
        problem = f"{name}: {8 * found.getsampwidth()} bits in {found.getnchannels()} channels"
        raise BadInput(problem, fix="save it with 16 bits in one or two channels")
    if found.getframerate() != rate:
        problem = f"{name}: {found.getframerate()} samples a second, where {rate} are wanted"
        raise BadInput(problem, fix=f"resample it: ffmpeg -i FILE -ar {rate} OUT.wav")
