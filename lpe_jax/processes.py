"""Several processes that share one run: hosts of a TPU pod, GPU nodes, or processes on one machine.

Each has the models on devices of its own, draws its share of the prompts and writes records of its own; no computation
spans two, so that none waits for another while it draws, and one that dies leaves the others to draw on, unless it is
the first, which holds what they talk by: JAX then ends them all. They meet a few times: before anything is drawn, to
agree on what is run, and when all have drawn their shares, for the first to report them.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

# The service by which JAX's processes find each other also says who lives and passes words on. Its client has no public
# name; the public functions on top of it are computations on all devices, which wait for ever for one that died.
from jax._src import distributed as _distributed

from lpe_jax.errors import RunError, UserError
from lpe_jax.preemption import EXIT_STATUS, Notice
from lpe_jax.records.files import part_files, part_name
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.run import Run, differences

T = TypeVar("T")
# Unheard of for so long, a process counts as dead.
HEARTBEAT_SECONDS = 100
# All are to be there within so many seconds of the first.
START_SECONDS = 300
# Network file systems may show what another machine wrote only so much later.
_PATIENCE_SECONDS = 60.0
_TOKEN = ".shared-"
# Where a process that has been told to end says so, and how many seconds there are for it.
_STOP = "lpe_jax/stop/"
# The first ends so much later than the others.
_FIRST_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that share a run.

    Attributes:
      index: its number, from 0. The first keeps the run's record and reports.
      count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the record and reports."""
        return self.index == 0

    @property
    def prefix(self) -> str:
        """What its lines begin with: the output of several is often shown as one."""
        return "" if self.count == 1 else f"process {self.index}: "

    def share(self, items: Sequence[T]) -> list[T]:
        """Every count-th item: what falls to this process."""
        return list(items[self.index :: self.count])

    def meet(self, about: str, word: Any = None) -> dict[int, Any]:
        """Waits until every living process has come to this meeting, and returns what each that came has said.

        Who has died or ended without coming is not in it. All must come to the same meetings in the same order, once.

        Args:
          word: a JSON value.

        Raises:
          RunError: this process was started anew while the others are still there.
        """
        said = json.dumps(word)
        if self.count == 1:
            return {0: json.loads(said)}
        client, key = _client(), f"lpe_jax/{about}/"
        try:
            client.key_value_set(f"{key}{self.index}", said)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
            raise RunError(
                f"process {self.index} was part of this run before, and the others go on without it; start all "
                f"{self.count} again when they have ended"
            ) from None
        client.get_live_nodes(list(range(self.count)))
        return {int(name.rpartition("/")[2]): json.loads(text) for name, text in client.key_value_dir_get(key)}

    def everyone(self, about: str, word: Any = None) -> list[Any]:
        """As meet, where nobody may be missing: each process's word, in order.

        Raises:
          RunError: a process has died or ended.
        """
        words = self.meet(about, word)
        if gone := self.gone(words):
            raise RunError(f"{_named(gone)} of {self.count} ended before the run began; see the reason there")
        return [words[k] for k in range(self.count)]

    def gone(self, words: Mapping[int, Any]) -> list[int]:
        """Who did not come to a meeting."""
        return [k for k in range(self.count) if k not in words]

    def follow(self, folder: Path, finished: bool) -> tuple[Path, bool]:
        """The first process's word on which folder it is and whether there is nothing to do; the others' is not asked.

        The default folder's name depends on when files were written, which differs from machine to machine.
        """
        name, finished = self.everyone("folder", [str(folder), finished])[0]
        return Path(name), finished

    def open(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        extent: Mapping[str, Any],
        asked: Mapping[str, Any],
        flags: str,
    ) -> Run:
        """Opens the run folder for all, once all agree on settings and extent; see lpe_jax.records.run.Run.

        Raises:
          RunError: they differ between processes, or the folder cannot be had.
        """
        self._agree({**settings, **extent})
        given = {"extent": extent, "asked": asked, "flags": flags}
        if self.count == 1:
            return Run(folder, settings, **given)
        if not self.first:
            token = self.everyone("opened")[0]
            shared = _patiently(lambda: (folder / token).exists())
            run = Run(folder, settings, **given, part=self.index, keep_record=not shared)
            self.everyone("shared", shared)
            return run
        run = Run(folder, settings, **given)
        for old in folder.glob(f"{_TOKEN}*"):
            old.unlink()
        token = folder / f"{_TOKEN}{secrets.token_hex(8)}"
        token.touch(mode=0o600)
        self.everyone("opened", token.name)
        shared = self.everyone("shared", True)
        token.unlink()
        if apart := [k for k in range(self.count) if not shared[k]]:
            print(f"note: {_not_shared(folder, apart)}", flush=True)
        return run

    def _agree(self, settings: Mapping[str, Any]) -> None:
        first, *others = self.everyone("settings", dict(settings))
        for k, other in enumerate(others, start=1):
            if found := differences(first, other, "process 0", f"process {k}"):
                raise RunError(
                    f"processes 0 and {k} differ in {found}; give all the same command, the same files, and machines "
                    "and packages alike"
                )

    def ledger(self, folder: Path) -> Ledger:
        """This process's own ledger, which knows every other's verdicts so far."""
        path = folder / "verdicts.sqlite"
        ledger = Ledger(path.with_name(part_name(path.name, self.index)), shared=self.count > 1)
        # By now each has its file in the form that several machines may read.
        self.everyone("ledgers")
        self.learn(ledger, folder)
        return ledger

    def learn(self, ledger: Ledger, folder: Path) -> None:
        """Has a ledger know what is in the others of its folder."""
        ledger.learn(path for k, path in part_files(folder / "verdicts.sqlite").items() if k != self.index)

    def drawn(self, kept_by: Callable[[int], int], folder: Path) -> list[int]:
        """Says that this share is drawn and waits for all others. Returns who is gone without having said so.

        Args:
          kept_by: how much of what a process wrote can be read here, now.

        Raises:
          RunError: the first does not see what others have on disk, since each has a folder of its own.
        """
        words = self.meet("drawn", kept_by(self.index))
        if self.first:
            unseen = [k for k, n in words.items() if not _patiently(lambda k=k, n=n: kept_by(k) >= n)]
            if unseen:
                raise RunError(_not_shared(folder, unseen))
        return self.gone(words)

    def incomplete(self, gone: Sequence[int], missing: int, prompts: int) -> RunError:
        """What the first says where shares were not drawn to the end."""
        return RunError(
            f"{_named(gone)} of {self.count} ended before the share was drawn, and {missing} of {prompts} prompts are "
            "not complete; the same command goes on from what is on disk"
        )

    def notice(self, grace: float) -> Notice:
        """Of a SIGTERM to this process, or to any other of the run: all end then, with what they have on disk."""
        if self.count == 1:
            return Notice(grace)

        def tell() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # told before, or nobody is left to tell
                _client().key_value_set(f"{_STOP}{self.index}", str(grace))

        def heard() -> bool:
            return _told_to_stop() is not None

        # The first holds the line that the others talk by, and is to be the last.
        return Notice(grace if self.first else max(grace - _FIRST_SECONDS, grace / 2), tell, heard)

    def end(self) -> None:
        """Waits for the first to have finished the run.

        Raises:
          RunError: it ended without.
        """
        if 0 not in self.meet("finished"):
            raise RunError(
                "process 0 ended before the run was finished, see the reason there; what is drawn is on disk, and the "
                "same command goes on from it"
            )


ALONE = Processes()


def join(coordinator: str | None, count: int | None, index: int | None, *, find: bool = False) -> Processes:
    """Has this process find the others of its run. To be called before JAX touches a device.

    Args:
      coordinator: HOST:PORT of process 0, as the others reach it; None, as count and index, where there are no others.
      find: have JAX find all of it in the environment, as on TPU pods, under Slurm and in Kubernetes.

    Raises:
      UserError: the others cannot be found.
    """
    if not find and (count is None or count == 1):
        return Processes()
    if not find:
        _check_address(coordinator, mine=index == 0)
    # One that dies is to be missed and not to end the others.
    jax.config.update("jax_enable_recoverability", True)
    # It would take SIGTERM for a notice that somebody asks for later.
    jax.config.update("jax_enable_preemption_service", False)
    where = {} if find else {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    # With all of it given nothing is looked for: under Slurm it would find one GPU of a node for each process.
    method = None if find else "deactivate"
    try:
        jax.distributed.initialize(
            **where,
            cluster_detection_method=method,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        # All make their devices known to each other here, before some load models for longer than others wait.
        jax.local_devices()
    except (ValueError, RuntimeError) as error:
        given = "--distributed" if find else f"--coordinator={coordinator} --num_processes={count} --process_id={index}"
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise UserError(f"{given}: the processes did not find each other: {reason}") from None
    state = _distributed.global_state
    processes = Processes(state.process_id, state.num_processes)
    # However this process ends: JAX's own end of it would have nobody wait for anybody.
    atexit.register(_leave, processes)
    return processes


def _check_address(coordinator: str, mine: bool) -> None:
    """JAX would abort the whole process, with a stack trace.

    Raises:
      UserError: nobody answers, or this process cannot listen there.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            if mine:
                with socket.socket() as listener:
                    # A port that was in use just now is not in use.
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(("", int(port)))
            else:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if mine:
                raise UserError(f"--coordinator={coordinator}: port {port} cannot be had: {error}") from None
            if time.monotonic() > until:
                raise UserError(
                    f"--coordinator={coordinator}: nobody answers there ({error}); start process 0, and name it as "
                    "this machine reaches it"
                ) from None
        time.sleep(0.5)


def _leave(processes: Processes) -> None:
    """The first holds what the others need to talk at all: it goes last, and waits no longer than it may."""

    def leave() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while processes.first and len(_client().get_live_nodes(list(range(processes.count)))) > 1:
                pass
            jax.distributed.shutdown()

    if (grace := _told_to_stop()) is None:
        with contextlib.suppress(KeyboardInterrupt):
            leave()
        return
    waiting = threading.Thread(target=leave, daemon=True)
    waiting.start()
    with contextlib.suppress(KeyboardInterrupt):
        waiting.join(grace)
    if waiting.is_alive():
        # JAX's own end would wait for them too.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_STATUS)


def _told_to_stop() -> float | None:
    """The grace, in seconds, if any process of the run has been told to end."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # what it is will be seen where it is waited for
        for _, grace in _client().key_value_dir_get(_STOP):
            return float(grace)
    return None


def _client() -> Any:
    return _distributed.global_state.client


def _patiently(there: Callable[[], bool]) -> bool:
    """Whether it is there, be it a little later."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while not (found := there()) and time.monotonic() < until:
        time.sleep(0.5)
    return found


def _not_shared(folder: Path, apart: Sequence[int]) -> str:
    return (
        f"--out={folder} is not one folder that all processes see: process 0's lacks what {_named(apart)} writes. "
        "Name one on a shared file system; or, when all have ended, copy the folders into one (no rollouts have the "
        "same file name) and give the same command with one process, which draws nothing anew"
    )


def _named(indices: Sequence[int]) -> str:
    return ("process " if len(indices) == 1 else "processes ") + ", ".join(map(str, indices))
