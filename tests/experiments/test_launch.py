"""How programs end: whatever happens, in a status and a line that mean one thing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import estimate, launch
from tests.programs import refused_by, told_by

ROOT = Path(__file__).parents[2]


def ended(body, *flags, stdout=subprocess.PIPE, unbuffered=""):
    """Status, output and errors of a program whose main does this."""
    source = f"""'A program.'
import errno, os, sys
from lpe_jax.errors import UserError
from experiments import launch
def main():
    {body}
launch.run(main)
"""
    command = [sys.executable, "-c", source, *flags]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_nothing_is_wrong():
    assert ended("print('fine')") == (0, "fine\n", "")
    assert ended("print('odd'); sys.exit(1)") == (1, "odd\n", "")


LINES = {
    "raise UserError('one\\ntwo \\x1b[2Jthree')": "one two \\x1b[2Jthree",
    "open('x' * 300)": f"{'x' * 300}: File name too long",
    "os.mkdir('/proc/\\x1b[2J')": "/proc/\\x1b[2J: No such file or directory",
    "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))": "No space left on device",
    "raise OSError('the line is cut')": "the line is cut",
    "raise BrokenPipeError(errno.EPIPE, 'Broken pipe')": "Broken pipe",
}


@pytest.mark.parametrize("body", LINES)
def test_what_the_system_refuses_is_one_line(body):
    assert ended(body) == (2, "", f"error: {LINES[body]}\n")


@pytest.mark.parametrize("body", ["print('x')", "print('x' * 10**6)", "print('x'); sys.exit(1)"])
def test_output_that_finds_no_room(body):
    with open("/dev/full", "w") as full:
        code, _, err = ended(body, stdout=full)
    assert (
        code == 2 and err.startswith("error: ") and err.endswith("No space left on device\n") and err.count("\n") == 1
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_nobody_reads(unbuffered):
    read, write = os.pipe()
    os.close(read)
    try:
        code, _, err = ended("pass", "--help", stdout=write, unbuffered=unbuffered)
    finally:
        os.close(write)
    assert (code, err) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["print('x')", "print('x' * 10**6)", "print('x'); sys.exit(1)"])
def test_nobody_reads_on(body, unbuffered):
    """As with `| head`: quiet, with the status of a program that SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    try:
        code, _, err = ended(body, stdout=write, unbuffered=unbuffered)
    finally:
        os.close(write)
    assert (code, err) == (141, "")


def test_a_mistake_of_ours_is_no_finding():
    """Status 1 is experiments.check's word for something that is wrong with a folder."""
    code, _, err = ended("raise ValueError('unforeseen')")
    assert code == 2 and "Traceback" in err and err.endswith("ValueError: unforeseen\n")


def test_flags_that_are_none():
    code, out, err = ended("print('ran')", "--bogus=\x1b[2J")
    assert (
        code == 2 and out == "" and err.startswith("error: Unknown command line flag 'bogus'") and err.count("\n") == 1
    )


def test_a_flag_that_may_be_meant_is_named(capsys, tmp_path):
    known = {
        "--rollouts=3": "--report_rollouts",
        "--tokens=3": "--max_new_tokens, --tokens_per",
        "--no_figures": "--nofigures",
    }
    for wrong, meant in {**known, "--limits=3": "--limit", "--bogus": None}.items():
        code, _, err = told_by(capsys, tmp_path, estimate.main, wrong)
        assert code == 2 and (f"Did you mean: {meant}" in err if meant else "Did you mean" not in err), err


def test_messages_are_printed_and_not_obeyed(capsys):
    with pytest.raises(SystemExit):
        launch.fail("\x1b]0;title\x07 \u202egnp.exe")
    assert capsys.readouterr().err == "error: \\x1b]0;title\\x07 \\u202egnp.exe\n"


def test_values_that_are_none_are_one_line(capsys, tmp_path):
    said = {
        "--limit=three": "'three' must be a whole number",
        "--width=x": "'x' must be a number",
        "--limit=-3": "-3 is not a non-negative integer",
        "--nofigures=3": "--nofigures=3 does not take an argument",
        "--flagfile=/there/is/none": "Unable to open flagfile",
    }
    for flag, words in said.items():
        assert words in refused_by(capsys, tmp_path, estimate.main, flag)


def test_help_that_is_not_wanted(capsys, tmp_path):
    for flag in ("--nohelp", "--help=false"):
        assert "--limit" in refused_by(capsys, tmp_path, estimate.main, flag, "--limit=three")
