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


def told_by(capsys, folder: Path, main, *flags: str) -> tuple[int, str, str]:
    """The same: its exit status, output and errors."""
    capsys.readouterr()
    status = run_in(folder, main, *flags)
    return (status, *capsys.readouterr())
