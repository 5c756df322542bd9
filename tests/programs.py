"""Programs run within a test's process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import launch


def run_in(folder: Path, main, *flags: str) -> int:
    """Runs a program's main in a folder, with these flags; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["program", *flags])
        launch.run(main)
    return ended.value.code or 0


def refused_by(capsys, folder: Path, main, *flags: str) -> str:
    """What a program says of bad input: one line on stderr, status 2, and nothing else."""
    status, out, err = told_by(capsys, folder, main, *flags)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (status, out, err)
    return err


def told_by(capsys, folder: Path, main, *flags: str) -> tuple[int, str, str]:
    """The same: its exit status, output and errors."""
    capsys.readouterr()
    status = run_in(folder, main, *flags)
    return (status, *capsys.readouterr())
