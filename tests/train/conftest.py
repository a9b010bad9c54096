"""The tiny task of the contract tests, here too."""

from __future__ import annotations

from tests.contract import conftest as contract

_one_thread, killed, tiny = contract._one_thread, contract.killed, contract.tiny
network, context = contract.network, contract.context
