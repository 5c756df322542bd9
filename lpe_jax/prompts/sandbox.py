"""Chat templates, rendered in a process of their own.

A template is a program that came with a checkpoint. Jinja's sandbox, as transformers sets it up, keeps it from files
and from Python's inner workings, but not from time and memory: one product of a string is enough for either, and Python
cannot interrupt it. So a child renders, with a limit to its memory, no right to write files, and an end when the time
is over. It is started with the first template and serves them all.

This file is the child's program, too, and imports nothing of this package.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

# Of address space, of which Python and NumPy need a third.
MEMORY_BYTES = 2 << 30
# More than any model reads.
MAX_CHARACTERS = 8 << 20
# Real ones have a few thousand.
_MOST_TEMPLATE = 1 << 20
# Of processor time, for one rendering; whoever waits for it waits less.
_CPU_SECONDS = 120
# A child that has to import transformers from a slow disk is not ready at once.
_START_SECONDS = 120.0
# Such a child has no use for more, and what it does not know it cannot tell.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "SYSTEMROOT", "TMPDIR")


class TemplateError(Exception):
    """What a template did instead of rendering, in one line."""


class _Child:
    """A process that renders one template after another."""

    def __init__(self) -> None:
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            # Without the script's own folder on the path, where files have names that others have too.
            [sys.executable, "-P", "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the run to hear of, which may still have something to render.
            process_group=0,
            env=kept | {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        )
        self._answer(_START_SECONDS)

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What it answers.

        Raises:
          TimeoutError: nothing, in so many seconds; it is ended then.
          TemplateError: it died, or answers without end.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        until, parts, size = time.monotonic() + seconds, [], 0
        out = self._process.stdout.fileno()
        while not parts or not parts[-1].endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                self.end()
                raise TimeoutError
            parts.append(os.read(out, 1 << 20))
            size += len(parts[-1])
            # A character has up to twelve bytes, as JSON spells it.
            if not parts[-1] or size > 12 * MAX_CHARACTERS + 1000:
                self.end()
                raise TemplateError("it took too much memory, or ended the process that renders")
        return json.loads(b"".join(parts))

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


_lock = threading.Lock()
_child: _Child | None = None


def render(template: str, turns: list[dict[str, str]], variables: dict[str, Any], seconds: float) -> str:
    """The text that a template makes of turns, as transformers renders it.

    Args:
      variables: what else it may ask for; JSON values.

    Raises:
      TemplateError: it fails.
      TimeoutError: it takes longer.
    """
    global _child
    if len(template) > _MOST_TEMPLATE:
        raise TemplateError(f"it has {len(template)} characters, and {_MOST_TEMPLATE} are the most")
    with _lock:
        if _child is not None and not _child.running:
            _child.end()
            _child = None
        _child = _child or _Child()
        found = _child.ask({"template": template, "turns": turns, "variables": variables}, seconds)
    if "text" in found:
        return found["text"]
    raise TemplateError(found["error"])


@atexit.register
def _end() -> None:
    if _child is not None and _child.running:
        _child.end()


def _serve() -> None:
    """The child: a question a line, an answer a line, until there are no more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _confine()
    print(json.dumps({}), flush=True)
    for line in sys.stdin.buffer:
        _limit_cpu()
        try:
            asked = json.loads(line)
            variables = {"add_generation_prompt": True} | asked["variables"]
            text = render_jinja_template([asked["turns"]], chat_template=asked["template"], **variables)[0][0]
            if len(text) > MAX_CHARACTERS:
                raise OverflowError(f"it wrote {len(text)} characters, and {MAX_CHARACTERS} are the most")
            answer = {"text": text}
        except Exception as error:  # a template can raise anything
            answer = {"error": _first_line(error)}
        print(json.dumps(answer), flush=True)


def _confine() -> None:
    import resource

    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        # Not every system has every limit.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))


def _limit_cpu() -> None:
    """Of what is rendered next: whoever asked for it is to end it, and may have been killed."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _CPU_SECONDS, hard))


def _end_with(parent: int) -> None:
    """Ends this process when that one is its parent no more; what Python cannot interrupt is over first."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    _serve()
