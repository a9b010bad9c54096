"""Whether a device can be measured now. [no torch]"""

from __future__ import annotations

from edgetl.device import Device
from edgetl.errors import BadHost
from edgetl.remote import require


def absence(device: Device) -> str:
    """Return why a device cannot be measured now, nothing where it can.

    Raises:
        Refused: its key is not the known one.

    """
    try:
        require(device)
    except BadHost as e:
        return e.problem
    return ""
