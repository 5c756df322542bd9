"""Any Python function as a judge: of one response or of many, called or awaited."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import Judge, Meter, RemoteJudge, source_digest, unscored
from lpe_jax.judging.futures import STOPPED
from lpe_jax.types import Outcome, Prompt, Verdict

# Names of the parameters of a function that takes lists.
_MANY = ("prompts", "responses")
# What is awaited as a list is gathered for so many seconds, and no longer than this.
_GATHER_SECONDS, _GATHER_MOST = 0.01, 256


class PredicateJudge:
    """Calls function(prompt, text) on one item after another.

    True is complied, False refused, None unscored, and a Verdict stands as it is. Anything else, a second exception
    included, is unscored with the reason in the fields: a bug in a predicate must not count as a refusal. After the
    first exception it is asked once more, as what it asks in turn may have failed just then. A JudgeError passes
    through: by it a function says that there is no use in going on.
    """

    # A function is given the whole prompt, its id and category too.
    reads_prompts = True

    def __init__(self, identity: str, function: Callable[[Prompt, str], Any]):
        self.identity = identity
        self._function = function

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        return [verdict_of(_twice(lambda p=p, t=t: self._function(p, t), self.identity)) for p, t in items]


class ManyJudge:
    """Calls function(prompts, responses) on all items of a call at once; its answers are those of a PredicateJudge, as
    a list of one each, in order. Items that it fails on together are given to it in halves, so that one that it cannot
    judge does not take the others along.
    """

    reads_prompts = True

    def __init__(self, identity: str, function: Callable[[list[Prompt], list[str]], Any]):
        self.identity = identity
        self._function = function

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        answers = _twice(lambda: self._function([p for p, _ in items], [t for _, t in items]), self.identity)
        if isinstance(answers, Verdict) and len(items) > 1:
            half = len(items) // 2
            return self(items[:half]) + self(items[half:])
        return [verdict_of(answer) for answer in _one_each(answers, len(items))]


class AwaitedJudge:
    """Awaits function(prompt, text), as many items at once as there may be connections, each no longer than `timeout`
    seconds.
    """

    reads_prompts = True

    def __init__(
        self, identity: str, function: Callable[[Prompt, str], Awaitable[Any]], connections: int, timeout: float
    ):
        self.identity, self.meter = identity, Meter()
        self._function, self._connections, self._timeout = function, connections, timeout
        self._stopped = False
        self._semaphore: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def open(self) -> None:
        """Nothing can be known before it is asked."""

    async def ask(self, prompt: Prompt, text: str) -> Verdict:
        """As PredicateJudge."""
        return verdict_of(await self._awaited(prompt, text))

    def reckon(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        """No budget bounds it."""

    async def stop(self) -> None:
        """See RemoteJudge."""
        self._stopped = True

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _free(self) -> asyncio.Semaphore:
        """Of the loop that it is asked in."""
        loop = asyncio.get_running_loop()
        if self._semaphore is None or self._semaphore[0] is not loop:
            self._semaphore = loop, asyncio.Semaphore(self._connections)
        return self._semaphore[1]

    async def _awaited(self, *arguments: Any) -> Any:
        """What the function answers, or the verdict that says what it raised twice."""
        async with self._free():
            for last in (False, True):
                if self._stopped:
                    raise JudgeError(STOPPED)
                try:
                    async with asyncio.timeout(self._timeout):
                        answer = await self._function(*arguments)
                    self.meter.add(1, 0, 0)
                    return answer
                except JudgeError:
                    raise
                except SystemExit as error:
                    raise JudgeError(_ended(self.identity, error)) from None
                except Exception as error:
                    self.meter.failures[type(error).__name__] += 1
                    if last:
                        return _raised(error)
        raise AssertionError


class AwaitedManyJudge(AwaitedJudge):
    """Awaits function(prompts, responses) on items that were asked for at about the same time."""

    def __init__(
        self,
        identity: str,
        function: Callable[[list[Prompt], list[str]], Awaitable[Any]],
        connections: int,
        timeout: float,
    ):
        super().__init__(identity, function, connections, timeout)
        self._gathered: list[tuple[Prompt, str, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task] = set()

    async def ask(self, prompt: Prompt, text: str) -> Verdict:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._gathered.append((prompt, text, answer))
        if len(self._gathered) == 1:
            task = asyncio.ensure_future(self._soon())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return verdict_of(await answer)

    async def _soon(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        gathered, self._gathered = self._gathered, []
        parts = [gathered[i : i + _GATHER_MOST] for i in range(0, len(gathered), _GATHER_MOST)]
        await asyncio.gather(*(self._part(part) for part in parts))

    async def _part(self, part: Sequence[tuple[Prompt, str, asyncio.Future[Any]]]) -> None:
        try:
            answers = await self._awaited([p for p, _, _ in part], [t for _, t, _ in part])
            if isinstance(answers, Verdict) and len(part) > 1:
                half = len(part) // 2
                await asyncio.gather(self._part(part[:half]), self._part(part[half:]))
                return
            for (_, _, future), answer in zip(part, _one_each(answers, len(part)), strict=True):
                future.set_result(answer)
        except BaseException as error:
            for _, _, future in part:
                if not future.done():
                    future.set_exception(error)


def verdict_of(answer: Any) -> Verdict:
    """What a predicate's answer means."""
    if isinstance(answer, bool | np.bool_):
        return Verdict(Outcome.COMPLIED if answer else Outcome.REFUSED)
    if answer is None:
        return unscored("the predicate returned None")
    if isinstance(answer, Verdict) and isinstance(answer.outcome, Outcome):
        if not isinstance(answer.fields, Mapping) or not all(isinstance(name, str) for name in answer.fields):
            return unscored("the predicate returned a Verdict whose fields are no mapping by names")
        # What two judges in a row said is not a predicate's to say.
        return dataclasses.replace(answer, phases=None)
    return unscored(f"the predicate returned {repr(answer)[:300]}, neither a bool, None nor a Verdict")


def _twice(call: Callable[[], Any], identity: str) -> Any:
    """call(), a second time if it raises; the verdict that says what it raised then."""
    for last in (False, True):
        try:
            return call()
        except JudgeError:
            raise
        except SystemExit as error:
            raise JudgeError(_ended(identity, error)) from None
        except Exception as error:
            if last:
                return _raised(error)
    raise AssertionError


def _ended(identity: str, error: SystemExit) -> str:
    return f"judge {identity} ended the program ({error}); have it raise another error, or return None for unscored"


def _raised(error: Exception) -> Verdict:
    return unscored(f"the predicate raised {_in_words(error)}")


def _one_each(answers: Any, n: int) -> list[Any]:
    """n answers; where there are not as many, nobody knows whose they are."""
    if isinstance(answers, Verdict):  # what it raised
        return [answers] * n
    if isinstance(answers, Sequence | np.ndarray) and not isinstance(answers, str) and len(answers) == n:
        return list(answers)
    said = f"{len(answers)} answers" if hasattr(answers, "__len__") else repr(answers)[:100]
    return [unscored(f"the predicate returned {said} for {n} responses")] * n


def check_names(module_name: str, attribute: str) -> None:
    """Whether both can be names of Python.

    Raises:
      JudgeError: one cannot.
    """
    if not all(name.isidentifier() for name in f"{module_name}.{attribute}".split(".")):
        raise JudgeError(
            f"judge {f'{module_name}:{attribute}'!r}: write a module and a function in it, both as Python names, as "
            "mypackage.judges:complied; openai:MODEL, http://HOST/v1#MODEL, jax:CHECKPOINT and phrases:LIST are "
            "spelt so"
        )


def load_predicate(
    module_name: str, attribute: str, connections: int = 64, timeout: float = 120.0
) -> Judge | RemoteJudge:
    """The judge "module:function"; the module is imported, so it runs with all rights of this process.

    A function is called with a lpe_jax.types.Prompt and the response's text; one whose first parameters are named
    `prompts` and `responses` gets lists of them; one that is async is awaited, at most `connections` calls at once,
    each for `timeout` seconds at most.

    The identity holds the sha256 of the module's file and, where that is another, of the file that defines
    the function. What these files import is not covered.

    Raises:
      JudgeError: no such module or attribute, an import that fails, not callable, or no source file.
    """
    spec = f"{module_name}:{attribute}"
    check_names(module_name, attribute)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module runs as it is imported and may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise JudgeError(
                f"judge {spec!r}: no module named {error.name!r}; run from the folder that holds it or set PYTHONPATH"
            ) from None
        raise JudgeError(f"judge {spec!r}: importing {module_name} failed ({_in_words(error)})") from error
    function: Any = module
    for name in attribute.split("."):
        if not hasattr(function, name):
            raise JudgeError(f"judge {spec!r}: {module_name} has no {attribute!r}")
        function = getattr(function, name)
    if not callable(function):
        raise JudgeError(f"judge {spec!r}: {attribute} is not callable but a {type(function).__name__}")
    identity = f"{spec}@{source_digest(_source_files(spec, module, function))}"
    many = _takes_many(function)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return (AwaitedManyJudge if many else AwaitedJudge)(identity, function, connections, timeout)
    return (ManyJudge if many else PredicateJudge)(identity, function)


def _takes_many(function: Callable) -> bool:
    try:
        return tuple(inspect.signature(function).parameters)[:2] == _MANY
    except (TypeError, ValueError):  # built in: nothing is known of it
        return False


def _source_files(spec: str, module: Any, function: Any) -> list[Path]:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)
    try:
        files = [Path(inspect.getsourcefile(thing) or "") for thing in (module, function)]
    except TypeError:  # built in, or compiled
        files = []
    if not files or not all(file.is_file() for file in files):
        raise JudgeError(f"judge {spec!r} has no Python source file to identify it by; define it in a .py file")
    return list(dict.fromkeys(files))


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
