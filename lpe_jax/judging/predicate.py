"""Any Python function as a judge."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpe_jax.errors import JudgeError
from lpe_jax.judging.base import source_digest, unscored
from lpe_jax.types import Outcome, Prompt, Verdict


class PredicateJudge:
    """Calls function(prompt, text) on one item after another.

    True is complied, False refused, None unscored, and a Verdict stands as it is. Anything else, a second exception
    included, is unscored with the reason in the fields: a bug in a predicate must not count as a refusal. After the
    first exception it is asked once more, as what it asks in turn may have failed just then.
    """

    def __init__(self, identity: str, function: Callable[[Prompt, str], Any]):
        self.identity = identity
        self._function = function

    def __call__(self, items: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        return [self._judge(prompt, text) for prompt, text in items]

    def _judge(self, prompt: Prompt, text: str) -> Verdict:
        for last in (False, True):
            try:
                answer = self._function(prompt, text)
                break
            except Exception as error:
                if last:
                    return unscored(f"the predicate raised {_in_words(error)}")
        if isinstance(answer, bool | np.bool_):
            return Verdict(Outcome.COMPLIED if answer else Outcome.REFUSED)
        if answer is None:
            return unscored("the predicate returned None")
        if isinstance(answer, Verdict) and isinstance(answer.outcome, Outcome):
            return answer
        return unscored(f"the predicate returned {repr(answer)[:300]}, neither a bool, None nor a Verdict")


def load_predicate(module_name: str, attribute: str) -> PredicateJudge:
    """The judge "module:function"; the module is imported, so it runs with all rights of this process.

    The identity holds the sha256 of the module's file and, where that is another, of the file that defines
    the function. What these files import is not covered.

    Raises:
      JudgeError: no such module or attribute, an import that fails, not callable, or no source file.
    """
    spec = f"{module_name}:{attribute}"
    if not all(name.isidentifier() for name in f"{module_name}.{attribute}".split(".")):
        raise JudgeError(f'judge {spec!r}: write "module:function", both as Python names')
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
    return PredicateJudge(f"{spec}@{source_digest(_source_files(spec, module, function))}", function)


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
