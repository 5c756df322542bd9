"""Whose a run folder is: another process's, or nobody's on a file system without locks, which is said as it is."""

import errno
import fcntl
import os

import pytest

from lpe_jax.errors import RunError
from lpe_jax.records.check import Check, held
from lpe_jax.records.run import Run
from tests.records import scenario


@pytest.fixture
def run(tmp_path):
    scenario.draw(tmp_path / "run", rows=4)
    scenario.judge(tmp_path / "run", 4)
    return tmp_path / "run"


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def failing(request, monkeypatch):
    """A file system that takes no locks; what it says."""

    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(request.param)


def test_a_folder_without_locks_is_in_use_by_nobody(run, failing):
    said = f"cannot be locked: {failing}"
    with pytest.raises(RunError, match=said):
        Run(run, {"seed": 0, "procedure": {}}, scenario.EXTENT, scenario.ASKED)
    with pytest.raises(RunError, match=said), held(run, to_write=True):
        pass
    with held(run, to_write=False):
        assert Check(run).well, "to look at it takes no lock"


def test_a_folder_that_is_in_use(run):
    with Run(run, {"seed": 0, "procedure": {}}, scenario.EXTENT, scenario.ASKED):
        for to_write in (False, True):
            with pytest.raises(RunError, match="in use by another process"), held(run, to_write=to_write):
                pass
        with pytest.raises(RunError, match="in use by another process"):
            Run(run, {"seed": 0, "procedure": {}}, scenario.EXTENT, scenario.ASKED)
