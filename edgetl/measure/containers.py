"""A container as the place of a measuring process whose memory is limited, where control groups are out of reach.

Docker and Podman take the same words. Nothing is downloaded: the image has to be there, and hold Python with the
packages that a device installs; this package, the artifact and its inputs are mounted, and nothing can be written.
[no torch]
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.errors import BadHost
from edgetl.plugins import FOLDERS_VARIABLE

IMAGE_VARIABLE = "EDGETL_IMAGE"
"""The image of the container: python3 with the core dependencies."""

TOOLS = ("docker", "podman")
PYTHON = "python3"
RESULT = "3"
"""The descriptor of the result in the container, from where only the standard output comes out."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_SEALED = (
    *("--rm", "--pull", "never", "--network", "none", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
_SHELL = ("sh", "-c", f'exec "$@" {RESULT}>&1 >/dev/null', "sh")
_WAIT_S = 20


@dataclass(frozen=True)
class Container:
    """A tool that may run containers here, and the image."""

    tool: str
    image: str

    def words(self, name: str, limit: int, reads: Sequence[Path]) -> tuple[str, ...]:
        """Return the start of a command that runs in a container with a memory limit in bytes, swap excluded.

        Raises:
            BadHost: a folder that it has to read cannot be mounted.

        """
        user = ("--user", f"{os.getuid()}:{os.getgid()}")
        own = (*user, "--userns", "keep-id") if self.tool == "podman" else user
        memory = ("--memory", str(limit), "--memory-swap", str(limit))
        mounts = [word for path in dict.fromkeys(reads) for word in ("--mount", _mount(path))]
        passed = ("--env", "EDGETL_PAD", "--env", FOLDERS_VARIABLE)
        return (self.tool, "run", "--name", name, *memory, *_SEALED, *own, *passed, *mounts, self.image, *_SHELL)


@contextlib.contextmanager
def contained(limit: int, reads: Sequence[Path], lacks: str) -> Iterator[tuple[str, ...]]:
    """Yield the start of a command that runs in a container, which is gone afterwards, however the command ended.

    Raises:
        BadHost: no tool may run containers here, or there is no image; `lacks` says why nothing else will do.

    """
    container = _found(lacks)
    name = f"edgetl-{secrets.token_hex(8)}"
    try:
        yield container.words(name, limit, reads)
    finally:  # the client's end does not end its container
        _asked([container.tool, "rm", "--force", name])


def _found(lacks: str) -> Container:
    tools = [tool for tool in TOOLS if shutil.which(tool)]
    problem = f"--limit: memory cannot be limited here: {lacks}"
    if not tools:
        fix = "use a system with cgroup v2 and systemd, or install docker or podman"
        raise BadHost(f"{problem}, no {' or '.join(TOOLS)}", fix=fix)
    image = os.environ.get(IMAGE_VARIABLE, "")
    if not _IMAGE.fullmatch(image):
        fix = f"name an image with Python and edgetl's core dependencies for {tools[0]}: {IMAGE_VARIABLE}=NAME"
        raise BadHost(f"{problem}, and {IMAGE_VARIABLE} names no image", fix=fix)
    for tool in tools:
        if _asked([tool, "image", "inspect", image]):
            return Container(tool, image)
    fix = f"see what `{tools[0]} image inspect {image}` says; pull or build the image, or join the tool's group"
    raise BadHost(f"{problem}, and {' or '.join(tools)} shows no image {image} to this user", fix=fix)


def _asked(command: Sequence[str]) -> bool:
    """Say whether a short command of the tool succeeded."""
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_WAIT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _mount(path: Path) -> str:
    """Return the words that show a path in a container at the same place, not to be written."""
    if re.search(r'[,"\r\n]', str(path)):
        raise BadHost(f"--limit: {path} cannot be mounted into a container", fix="use a path without commas and quotes")
    return f"type=bind,src={path},dst={path},readonly"
