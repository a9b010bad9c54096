from __future__ import annotations

import socket

import pytest

from edgetl.errors import BadHost, BadInput
from edgetl.trust import Address, address, advice, fingerprints


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pi@board.local", Address("pi@", "board.local", 22)),
        ("board:2222", Address("", "board", 2222)),
        ("ssh://me@10.0.0.7", Address("me@", "10.0.0.7", 22)),
        ("rpi5", Address("pi@", "rpi5.local", 22)),
    ],
)
def test_addresses(text: str, found: Address) -> None:
    assert address(text) == found


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=id", "a b", "a;b", "me@-x", "$(id)", "local", "android", "h:99999999"]
)
def test_what_ssh_would_take_for_an_option_or_a_shell_for_a_command_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        address(text)


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(BadHost, match=r"127\.0\.0\.1|OpenSSH|ssh-key"):
            fingerprints(Address("", "127.0.0.1", port))


def test_the_advice_compares_before_it_trusts() -> None:
    said = advice(Address("pi@", "board", 2222))
    assert "ssh -p 2222 pi@board" in said
    assert said.index("Compare") < said.index("known_hosts")
