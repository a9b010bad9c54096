"""The run folder's promises: files whole or absent, things made once, one writer at a time."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path

import pytest

from edgetl import store
from edgetl.errors import BadHost, OutOfResources, Refused


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert store.digest({"a": 1, "b": [2, None]}) == store.digest({"b": [2, None], "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    store.write_json(file, {"old": True})
    for code, kind in ((errno.ENOSPC, OutOfResources), (errno.EDQUOT, OutOfResources), (errno.EROFS, BadHost)):

        def fail(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(kind):
                store.write_json(file, {"new": True})
    with pytest.raises(OutOfResources), store.writing(file):
        raise OSError("17970 requested and 7136 written")  # as numpy tells it
    assert store.read_json(file) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(LookupError), store.folder_being_made(folder) as temporary:  # noqa: PT012
        (temporary / "half").write_text("x")
        raise LookupError
    assert list(tmp_path.iterdir()) == []
    with store.folder_being_made(folder) as temporary:
        (temporary / "whole").write_text("x")
        assert not folder.exists()
    assert [p.name for p in folder.iterdir()] == ["whole"]


def test_what_is_kept_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    store.keep_json(file, [1])
    before = file.stat().st_mtime_ns
    os.utime(file, ns=(before - 10**9, before - 10**9))
    store.keep_json(file, [1])
    assert file.stat().st_mtime_ns == before - 10**9
    store.keep_json(file, [2])
    assert store.read_json(file) == [2]


def test_a_thing_is_made_once_per_key_and_again_when_a_byte_changed(tmp_path: Path) -> None:
    made: list[str] = []

    def once(key: str) -> Path:
        def make(folder: Path) -> None:
            made.append(key)
            (folder / "table").write_text(key)

        return store.made_once(tmp_path / "shared", key, make, tmp_path / "old")

    once("a")
    once("a")
    assert made == ["a"]
    (tmp_path / "shared" / "table").write_text("b")
    assert (once("a") / "table").read_text() == "a"
    assert (once("b") / "table").read_text() == "b"
    assert made == ["a", "a", "b"]
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_a_stamp_holds_for_these_bytes_and_this_key(tmp_path: Path) -> None:
    file, note = tmp_path / "file", tmp_path / "file.json"
    file.write_text("x")
    store.stamp(note, "key", [file])
    assert store.stamped(note, "key", [file])
    assert not store.stamped(note, "other", [file])
    file.write_text("y")
    assert not store.stamped(note, "key", [file])
    note.write_text("{")
    assert not store.stamped(note, "key", [file])


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with store.locked(tmp_path / "run"), pytest.raises(BadHost, match="another edgetl command"):
        store.locked(tmp_path / "run").__enter__()
    with store.locked(tmp_path / "run"):
        pass


def test_sweeping_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "steps" / ".all.12.abcd.tmp").mkdir(parents=True)
    (tmp_path / ".plan.json.12.abcd.tmp").write_text("")
    (tmp_path / "plan.json").write_text("{}")
    store.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["plan.json", "steps"]


def test_retired_things_keep_a_readable_name_and_never_meet(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "01-dense" / "all").mkdir(parents=True)
        store.retire(tmp_path / "01-dense" / "all", tmp_path / ".old")
    names = [p.name for p in (tmp_path / ".old").iterdir()]
    assert len(set(names)) == 2
    assert all(name.startswith("01-dense-all-") for name in names)


def test_damaged_json_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(Refused, match=r"a\.json"):
        store.read_json(tmp_path / "a.json")
