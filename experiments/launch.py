"""How every program starts and fails: flags first, JAX later, bad input as one line."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import math
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from absl import app, flags

from experiments import help_text
from lpe_jax.errors import UserError
from lpe_jax.preemption import INTERRUPTED, Stopped, command
from lpe_jax.reporting.text import printable

FLAGS = flags.FLAGS
app.define_help_flags()
# Of a program that SIGPIPE ends, as a shell shows it.
_UNREAD = 141
_NO_NUMBER = re.compile(r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (?P<text>.*)")


def run(main: Callable[..., None]) -> None:
    """Parses flags and calls main; a UserError, or what the system refuses, is one line on stderr and exit status 2.

    What a program writes is for its user alone to read, as responses may be harmful text. Status 130 is an interrupt
    from the keyboard, and 75 a SIGTERM, as of a machine that is taken away: what is on disk stays, and the same
    command, which is printed, goes on from there. Status 141 says that nobody reads its output any more. Status 1 is
    main's own to give.

    What a program takes besides flags are main's own parameters: none, one, one that may be left out, or any number
    from one on. With the flag of experiments/folder.py it may come by that as well.
    """

    def guarded(argv: list[str]) -> None:
        given = argv[1:]
        takes = next(iter(inspect.signature(main).parameters.values()), None)
        several = takes is not None and takes.kind is takes.VAR_POSITIONAL
        most = math.inf if several else int(takes is not None)
        if takes is not None and "run" in FLAGS and FLAGS.run is not None:
            if given:
                fail(f"run folders are named in two ways, {given[0]!r} and --run={FLAGS.run}; choose one of them")
            given.append(FLAGS.run)
        if len(given) > most:
            fail(f"unexpected argument {given[int(most)]!r}; options are written --name=value, see --help")
        if takes is not None and takes.default is takes.empty and not given:
            fail(f"{takes.name.upper().removesuffix('S') if several else takes.name.upper()} is missing, see --help")
        # JAX reports at INFO which backends it did not find, and what writes PDF files which tables of a font it has
        # left out; that is no news to the user.
        for talkative in ("jax", "fontTools"):
            logging.getLogger(talkative).setLevel(logging.WARNING)
        try:
            main(*given)
        except UserError as error:
            fail(str(error))
        except OSError as error:
            _refused(error)
        except Stopped as stopped:
            print(f"\n{stopped.words}", file=sys.stderr)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on from what is on disk:\n  {command()}", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            # jax's own error class cannot be named here without importing jax for --help.
            if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
                fail("the device has too little memory for these models, prompts and batch; lower --batch_size")
            traceback.print_exc()
            sys.exit(2)

    os.umask(0o077)
    try:
        app.run(guarded, flags_parser=functools.partial(_parsed, sys.modules[main.__module__]))
    finally:
        _flush()


def fail(message: str) -> NoReturn:
    """One line on stderr, status 2. Names of files are in it, and a terminal is to obey nothing of them."""
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(2)


def _parsed(program: ModuleType, argv: Sequence[str]) -> list[str]:
    """What is left of the arguments without the flags. --help ends the program, with a status of 0."""
    # absl names the module that is run by its file.
    name = sys.argv[0] if program.__name__ == "__main__" else program.__name__
    for asked in ("help", "helpshort", "helpfull"):
        FLAGS[asked].parse = functools.partial(_help, program, name, full=asked == "helpfull")
    try:
        return FLAGS(["--help" if arg == "-h" else arg for arg in argv])
    except flags.IllegalFlagValueError as error:
        fail(f"{_NO_NUMBER.sub(_must_be, str(error))}; see --help")
    except flags.Error as error:
        # absl goes by spelling alone, and leaves the "no" out.
        said = str(error).removeprefix("ERROR:: ").partition(". Did you mean")[0]
        fail(f"{said}{_meant(error, name)}; see --help")
    except ValueError as error:
        # absl's word for a value that --noFLAG is given.
        fail(f"{error}; see --help")


def _must_be(said: re.Match) -> str:
    """What Python says of text that is no number, in words."""
    return f"{said['text']} must be a {'whole ' * ('int' in said[0])}number"


def _help(program: ModuleType, name: str, arg: object, *, full: bool) -> None:
    if str(arg).lower() in ("false", "f", "0", "no", "n"):
        return
    try:
        print(help_text.of(program, name, full=full))
    except OSError as error:
        _refused(error)
    sys.exit(0)


def _refused(error: OSError) -> NoReturn:
    """Ends the program for what the system refused it."""
    _flush()
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        sys.exit(_UNREAD)
    fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))


def _meant(error: flags.Error, program: str) -> str:
    """The flags of this program that an unknown one may mean: those that share a word with it, or are spelt alike."""
    if not isinstance(error, flags.UnrecognizedFlagError):
        return ""
    own = [flag.name for flag in FLAGS.get_key_flags_for_module(program)]
    asked = error.flagname.removeprefix("no")
    parts = set(asked.replace("-", "_").split("_"))
    alike = [name for name in own if parts & set(name.split("_"))] or difflib.get_close_matches(asked, own, 3, 0.6)
    no = "no" if error.flagname.startswith("no") else ""
    meant = [f"--{no if FLAGS[name].boolean else ''}{name}" for name in alike[:3]]
    return f". Did you mean: {', '.join(meant)} ?" if meant else ""


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed: where it is not buffered, a flush does not say so."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _flush() -> None:
    """Has what was printed be where it goes, or ends the program because it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its own end, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(_UNREAD)
        fail(f"what is printed cannot be written: {error.strerror}")
