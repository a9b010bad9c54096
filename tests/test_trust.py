from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from edgetl.device import Device, load_device
from edgetl.errors import BadHost, BadInput
from edgetl.links import open_link
from edgetl.links._ssh_address import Address
from edgetl.trust import address, advice, fingerprints


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pi@board.local", Address("board.local", "pi")),
        ("board:2222", Address("board", "", 2222)),
        ("ssh://me@10.0.0.7", Address("10.0.0.7", "me")),
        ("rpi5", Address("rpi5.local", "pi")),
        ("[2001:db8::7]", Address("2001:db8::7")),
        ("ssh://me@[fe80::1%eth0]:2222/", Address("fe80::1%eth0", "me", 2222)),
        ("[::ffff:10.0.0.7]:65535", Address("::ffff:10.0.0.7", "", 65535)),
    ],
)
def test_addresses(text: str, found: Address) -> None:
    assert address(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "-oProxyCommand=id", "a b", "a;b", "me@-x", "$(id)", "local", "android", "h:99999999", "h:99999", "h:0"),
        *("::1", "[::1", "::1]", "[host]", "[]", "[::1%-x y]", "-me@host", "[::1]:", "adb://x"),
    ],
)
def test_what_ssh_would_take_for_an_option_or_a_shell_for_a_command_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        address(text)


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(BadHost, match=r"127\.0\.0\.1|OpenSSH|ssh-key"):
            fingerprints(Address("127.0.0.1", "", port))


def test_the_advice_compares_before_it_trusts() -> None:
    said = advice(Address("board", "pi", 2222))
    assert "ssh -p 2222 pi@board" in said
    assert said.index("Compare") < said.index("known_hosts")


@pytest.mark.parametrize("link", ["ssh://h:99999", "ssh://h:0", "ssh://::1", "docker://image"])
def test_a_device_file_and_the_command_line_read_addresses_alike(link: str) -> None:
    with pytest.raises(BadInput):
        load_device(link)
    with pytest.raises(ValidationError):
        Device.model_validate({"name": "x", "arch": {"isa": "x"}, "memory": {"total_bytes": 1}, "link": link})


def test_an_ipv6_address_reaches_the_client_without_its_brackets() -> None:
    link = open_link("ssh://pi@[2001:db8::7]:2222")
    command = list(link.command("true"))
    assert command[command.index("--") + 1] == "pi@2001:db8::7"
    assert command[command.index("-p") + 1] == "2222"
    changed = link.explain(255, "REMOTE HOST IDENTIFICATION HAS CHANGED")
    assert changed is not None
    assert "'[2001:db8::7]:2222'" in changed.fix
