"""SIGTERM: what is drawn is on disk in time, the exit status says so, and the same command goes on from there."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lpe_jax.preemption import EXIT_STATUS, INTERRUPTED, Notice, Stopped
from lpe_jax.records.rollouts import RolloutStore
from tests.helpers import save_hf_pair

ROOT = Path(__file__).parents[1]
JUDGE = """
import os, time

def slowly(prompt, response):
    time.sleep(float(os.environ.get("SLOWLY", 0)))
    return len(response.encode()) % 2 == 0

async def later(prompt, response):
    import asyncio
    await asyncio.sleep(float(os.environ.get("SLOWLY", 0)))
    return len(response.encode()) % 2 == 0
"""


def test_a_notice_is_heard_at_safe_points_only():
    old = signal.getsignal(signal.SIGTERM)
    with Notice(30) as notice:
        notice.check()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # nothing is raised here
        with pytest.raises(Stopped):
            notice.check()
        with pytest.raises(Stopped):
            notice.check()
    assert signal.getsignal(signal.SIGTERM) is old and signal.set_wakeup_fd(-1) == -1


def test_other_signals_are_none_of_its_business():
    heard = []
    old = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with Notice(0.0) as notice:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            notice.check()
        assert heard == [1]
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_processes_of_a_run_end_together():
    """Whoever gets the signal tells the others there and then, whatever its main thread does."""
    told = threading.Event()
    with Notice(30, tell=told.set) as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(5)
        with pytest.raises(Stopped):
            notice.check()
    with Notice(30, heard=lambda: True) as notice, pytest.raises(Stopped):
        notice.check()


def test_outside_the_main_thread_nothing_is_heard():
    found = []

    def work():
        with Notice(0.0) as notice:
            notice.check()
            found.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]


BUSY = """
import hashlib
from lpe_jax.preemption import Notice
with Notice(0.5) as notice:
    notice.last = lambda: print("kept", flush=True)
    print("ready", flush=True)
    # It sees no signal until it is done, as a compiler.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
    notice.check()
"""


def test_a_main_thread_that_hears_nothing_is_not_waited_for():
    """The grace is over while it computes: what can be kept is, and the process ends."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - began < 8
    assert (child.returncode, out) == (EXIT_STATUS, "kept\n") and "the same command goes on from there" in err


ENDS = """
import os, signal, sys, threading, time
from lpe_jax.preemption import Notice
case = sys.argv[1]
class Hung:
    def __call__(self):
        time.sleep(60)
def broken():
    raise OSError("disk is full")
heard = (lambda: True) if case == "heard" else None
with Notice(0.5, heard=heard) as notice:
    notice.last = {"hung": Hung(), "broken": broken}.get(case, lambda: print("kept", flush=True))
    if case != "heard":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [("heard", "goes on from there"), ("hung", "the disk does not answer"), ("broken", "disk is full")],
)
def test_the_end_comes_whatever_there_is_to_wait_for(case, said):
    """A main thread that does not look while another process was told, a disk that hangs, and one that is full."""
    began = time.monotonic()
    found = subprocess.run([sys.executable, "-c", ENDS, case], capture_output=True, text=True, timeout=50)
    assert found.returncode == EXIT_STATUS and said in found.stderr, found.stderr
    assert time.monotonic() - began < 20 and ("kept" in found.stdout) == (case == "heard")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    save_hf_pair(folder, num_hidden_layers=1)
    (folder / "prompts.txt").write_text("fold a boat\nwhistle at a gate\n")
    (folder / "slow_judge.py").write_text(JUDGE)
    return folder


def start(place, program, *flags, **env):
    models = [f"--{name}={place / name}" for name in ("original", "variant")]
    given = [*models, f"--prompts={place / 'prompts.txt'}", "--max_new_tokens=8", "--batch_size=16", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}", *given],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"} | env,
    )


def stop_when(child, line, seconds=0.0, signum=signal.SIGTERM):
    """Sends a signal a while after a line with these words; exit status, output and errors, and how long it took."""
    said = []
    for text in child.stdout:
        said.append(text)
        if line in text:
            break
    time.sleep(seconds)
    began = time.monotonic()
    child.send_signal(signum)
    out, err = child.communicate(timeout=120)
    return child.returncode, "".join(said) + out, err, time.monotonic() - began


def rollouts(out):
    return {(r.prompt_id, r.alpha, r.index): (r.tokens.tolist(), r.text) for r in RolloutStore(out / "rollouts").read()}


NAIVE = ["--method=naive", "--n_naive=300", "--nofigures"]


@pytest.mark.parametrize(("judge", "slow"), [("slowly", "0.05"), pytest.param("later", "3", marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_end_keeps_what_it_has(place, judge, slow):
    flags = [*NAIVE, f"--judge=slow_judge:{judge}", f"--out=stopped-{judge}"]
    code, out, err, seconds = stop_when(start(place, "estimate", *flags, SLOWLY=slow), "writing to", 4.0)
    assert code == EXIT_STATUS, err
    assert "stopped by SIGTERM" in err and "Traceback" not in err and seconds < 15
    kept = rollouts(place / f"stopped-{judge}")
    now = json.loads((place / f"stopped-{judge}" / "status.json").read_text())
    assert now["state"] == "stopped" and now["rollouts"] >= now["judged"] > 0 and now["prompts_done"] == 0
    # All may be drawn by then where the judge is late; none of it is lost, and the run is not finished.
    assert 0 < len(kept) <= 600 and not (place / f"stopped-{judge}" / "estimates.csv").exists()
    again = start(place, "estimate", *flags)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert f"going on from {len(kept)} rollouts" in out
    now = json.loads((place / f"stopped-{judge}" / "status.json").read_text())
    assert now["state"] == "finished" and now["rollouts_stored"] == len(kept) and now["rollouts"] == 600
    whole = start(place, "estimate", *NAIVE, "--judge=slow_judge:slowly", f"--out=whole-{judge}")
    assert whole.wait(timeout=120) == 0
    whole.communicate()
    assert rollouts(place / f"stopped-{judge}") == rollouts(place / f"whole-{judge}")
    tables = [(place / out / "estimates.csv").read_text() for out in (f"stopped-{judge}", f"whole-{judge}")]
    assert tables[0] == tables[1]


def test_ctrl_c_ends_a_run_that_can_be_gone_on_with(place):
    """The command that it prints goes on."""
    flags = [*NAIVE, "--judge=slow_judge:slowly", "--out=interrupted"]
    child = start(place, "estimate", *flags, SLOWLY="0.05")
    code, _, err, seconds = stop_when(child, "writing to", 4.0, signal.SIGINT)
    assert code == INTERRUPTED and "Ctrl-C again ends it at once" in err and "Traceback" not in err and seconds < 15
    kept = rollouts(place / "interrupted")
    assert json.loads((place / "interrupted" / "status.json").read_text())["state"] == "stopped"
    printed = shlex.split(err.strip().splitlines()[-1])
    assert printed[:3] == ["python", "-m", "experiments.estimate"] and printed[-1] == "--out=interrupted"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    again = subprocess.run([sys.executable, *printed[1:]], cwd=place, env=env, capture_output=True, text=True)
    assert again.returncode == 0 and f"going on from {len(kept)} rollouts" in again.stdout, again.stderr


TWICE = """
import hashlib
from lpe_jax.preemption import Notice
with Notice(60) as notice:
    notice.last = lambda: print("kept", flush=True)
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
"""


def test_a_second_ctrl_c_ends_at_once():
    child = subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() == "\n" and "within 60 s" in child.stderr.readline()
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert (child.returncode, out) == (INTERRUPTED, "kept\n") and "interrupted" in err and "Traceback" not in err


def test_ctrl_c_is_as_ever_while_there_is_nothing_to_keep():
    with Notice(0.0) as notice:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        time.sleep(0.1)
        notice.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("how", ["--noshare_prefixes", "--share_prefixes"])
@pytest.mark.slow
def test_a_sweep_that_is_told_to_end(place, how):
    flags = ["--alphas=1,0.5,0", "--n=200", "--n_naive=20000", how, "--judge=slow_judge:slowly", f"--out=sweep{how}"]
    code, out, err, seconds = stop_when(start(place, "sample", *flags), "writing to", 3.0)
    assert code == EXIT_STATUS, err
    assert "Traceback" not in err and seconds < 25
    assert json.loads((place / f"sweep{how}" / "status.json").read_text())["state"] == "stopped"
    again = start(place, "sample", *flags)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "finished in" in out, err
