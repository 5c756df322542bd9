"""Whatever a flag or a link names: what has no end is not read, and what waits for somebody is not waited for."""

import os
from pathlib import Path

import pytest

from lpe_jax.errors import UserError
from lpe_jax.judging.labels import read_labels
from lpe_jax.judging.lists import ListJudge
from lpe_jax.judging.rubric import load_template
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records import prompts, run
from lpe_jax.records.files import read_plain, read_text
from lpe_jax.records.shard import open_manifest, read_shard
from lpe_jax.reporting.columns import read_log10

READERS = {
    "--validate": read_labels,
    "--judge=phrases": lambda path: ListJudge(str(path)),
    "--judge_template": lambda path: load_template(str(path)),
    "--estimates": lambda path: read_log10(path, "rate"),
    "--prompts": lambda path: read_prompts(path, functional_category="standard"),
    "run.json": run.read_record,
    "prompts.jsonl": lambda path: prompts.read_prompts(path.parent, ""),
    "manifest.jsonl": open_manifest,
    "000000.parquet": lambda path: read_shard(path.parent, {"shard": path.name, "sha256": ""}, "manifest.jsonl"),
}


def device(path):
    path.symlink_to("/dev/zero")


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def sparse(path):
    """A thousand GiB on no disk."""
    path.touch()
    os.truncate(path, 1 << 40)


ENDLESS = [device, pipe, folder, sparse]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("endless", ENDLESS)
@pytest.mark.parametrize("reader", READERS)
def test_what_has_no_end_is_not_read(tmp_path, reader, endless):
    path = tmp_path / (reader if "." in reader else "file.csv")
    endless(path)
    with pytest.raises(UserError) as refused:
        READERS[reader](path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_name_that_no_file_can_have(tmp_path, reader):
    path = tmp_path / ("x" * 300) / (reader if "." in reader else "file.csv")
    with pytest.raises(UserError) as refused:
        READERS[reader](path)
    assert "File name too long" in str(refused.value)


def test_a_file_that_is_one(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n\xc3\xa9")
    assert read_plain(path, 17) == path.read_bytes() and read_text(path, 17) == "one\ntwo\nthree\né"
    (tmp_path / "link").symlink_to(path)
    assert read_plain(tmp_path / "link", 17) == path.read_bytes()
    with pytest.raises(OSError, match="it has 17 bytes, and 16 is the most"):
        read_plain(path, 16)
    for missing in (Path("nowhere"), tmp_path / ("x" * 300)):
        with pytest.raises(OSError):
            read_plain(missing, 16)
