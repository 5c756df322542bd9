"""Futures that follow from others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from lpe_jax.errors import JudgeError

T = TypeVar("T")
STOPPED = "judging was stopped"


def done(value: T) -> Future[T]:
    """One that has its result."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    """One that has failed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def then(first: Future[T], go_on: Callable[[T], None], out: Future[Any]) -> None:
    """go_on(result) once there is one; whatever is raised is out's."""

    def called(first: Future[T]) -> None:
        try:
            go_on(_result(first))
        except BaseException as error:
            out.set_exception(error)

    first.add_done_callback(called)


def all_of(futures: Sequence[Future[T]]) -> Future[list[T]]:
    """The results of all, once all are there; the first exception as soon as there is one."""
    out: Future[list[T]] = Future()
    if not futures:
        return done([])
    lock, left = threading.Lock(), len(futures)

    def called(future: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if out.done():
                return
            try:
                _result(future)
            except BaseException as error:
                out.set_exception(error)
                return
            if left == 0:
                out.set_result([f.result() for f in futures])

    for future in futures:
        future.add_done_callback(called)
    return out


def _result(future: Future[T]) -> T:
    """The result of a future that is done.

    Raises:
      JudgeError: it was cancelled; or whatever it has failed with.
    """
    if future.cancelled():
        raise JudgeError(STOPPED)
    return future.result()
