"""SIGKILL at any instant: nothing that was on disk is lost, nothing is there twice, and the end is as without."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a killed process has written is there whether or not a disk has it yet: memory is quicker.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def killed(kills, *more, seed=0):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, "-m", "tests.records.kills", folder, str(kills), str(seed), *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_that_are_killed_go_on():
    found = killed(10)
    assert found["wrong"] == [] and found["kills"] >= 10


def test_what_is_named_before_it_is_written_would_be_lost():
    assert killed(10, "careless")["wrong"]


@pytest.mark.fault
def test_runs_that_are_killed_very_often_go_on():
    found = killed(200, seed=1)
    assert found["wrong"] == [] and found["kills"] >= 200
