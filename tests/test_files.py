"""Files that somebody else changed: one line that names the file."""

import errno
import fcntl
import os
import types

import pytest

from adv_ssl import errors, files, metrics, provenance
from adv_ssl.errors import UserError
from adv_ssl.files import read_json, write_json

DAMAGED = {  # the bytes of results.json, and what is said of it
    "nothing": (b"", "Expecting value"),
    "cut short": (b'[{"stage": "pret', "Unterminated string"),
    "two of them": (b"[][]", "Extra data"),
    "no text": (b"\xff\xfe\x00\x01", "can't decode byte"),
    "zeros": (bytes(4096), "Expecting value"),
    "a web page": (b"<!DOCTYPE html>", "Expecting value"),
    "a pickle": (b"\x80\x04\x95\x10\x00", "can't decode byte"),
    "brackets without end": (b"[" * 100_000, "maximum recursion depth"),
    "a number without end": (b"[" + b"9" * 10_000 + b"]", "Exceeds the limit"),
    "a number": (b"1", "a int, not a list"),
    "null": (b"null", "a NoneType, not a list"),
    "another kind": (b"{}", "a dict, not a list"),
    "no records": (b"[1]", "a int, not a dict"),
    "records of nothing": (b'[{"stage": "finetune"}, {}]', "stage is a NoneType, not a str"),
    "another field": (b'[{"stage": []}]', "stage is a list, not a str"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name, tmp_path):
    content, said = DAMAGED[name]
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is damaged .*{said}.*: move it away") as raised:
        read_json(path, list, stage=str)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} is damaged .*Is a directory"):
        read_json(tmp_path, dict)


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "results.json"
    records = [{"stage": "finetune", "value": None}]
    write_json(path, records)
    assert read_json(path, list, stage=str) == read_json(path, list) == records
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_folder_is_held_by_one_and_looked_at_by_all(tmp_path, monkeypatch):
    assert not files.is_held(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with files.held(tmp_path / "run"):
        assert files.is_held(tmp_path / "run")
        with (
            pytest.raises(files.Busy, match="another run is at work"),
            files.held(tmp_path / "run"),
        ):
            pass
    assert not files.is_held(tmp_path / "run")
    with (tmp_path / "run" / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        looks_away = types.SimpleNamespace(sleep=lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        monkeypatch.setattr(files, "time", looks_away)
        with files.held(tmp_path / "run"):  # waits for who only looks
            pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_atomically(path, "old")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_is_no_full_memory():
    tensorstore = ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']")
    assert errors.disk_full(tensorstore)
    assert not errors.out_of_memory(tensorstore)
    assert errors.disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert errors.out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: 9 GB"))


def test_nobodys_home_is_one_line():
    with pytest.raises(UserError, match="~nosuchuser/x: there is no such user"):
        files.user_path("~nosuchuser/x")


@pytest.mark.parametrize("given", ["gs://bucket/run", "s3://bucket", "https://host/run"])
def test_an_address_is_no_folder(given):
    with pytest.raises(UserError, match=f"^{given} is no path of this machine: mount it"):
        files.user_path(given)


def test_a_record_of_the_starts_that_is_none(tmp_path):
    path = tmp_path / "provenance.json"
    provenance.record(path, 0, {"train": "6 images"})
    provenance.record(path, 0, {"train": "6 images"})
    whole = read_json(path, dict)
    assert len(whole["starts"]) == 2
    for field in ("starts", "data"):
        write_json(path, whole | {field: 7})
        with pytest.raises(UserError, match=f"{field} is a int"):
            provenance.record(path, 0, {"train": "6 images"})


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b'{"step": 1', b"[1]\n", b"7\n", b"\xff", b'{"loss": 1}\n']
)
def test_a_damaged_log_of_numbers_counts_up_to_there(content, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2, "loss": 1.5}\n' + content)
    assert metrics.read(path) == [{"step": 2, "loss": 1.5}]
    with metrics.Writer(tmp_path, 2) as writer:
        writer.write(4, {"loss": 1.0})
    assert [record["step"] for record in metrics.read(path)] == [2, 4]
