"""How every program starts and fails: flags first, JAX later, bad input as one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from absl import app, flags

from lpe_jax.errors import UserError
from lpe_jax.preemption import EXIT_STATUS, GO_ON, Stopped

FLAGS = flags.FLAGS


def run(main: Callable[..., None], argument: str | None = None, several: bool = False) -> None:
    """Parses flags and calls main; a UserError becomes one line on stderr and exit status 2.

    What a program writes is for its user alone to read, as responses may be harmful text. Status 130 is an interrupt
    from the keyboard, and 75 a SIGTERM, as of a machine that is taken away: what is on disk stays, and the same command
    goes on from there.

    Args:
      argument: what the one argument is that main is called with, besides flags; None is none.
      several: there may be more of them.
    """

    def guarded(argv: list[str]) -> None:
        taken = 1 if argument is None else 2
        if len(argv) > taken and not several:
            fail(f"unexpected argument {argv[taken]!r}; options are written --name=value, see --help")
        if len(argv) < taken:
            fail(f"{argument} is missing, see --help")
        # JAX reports at INFO which backends it did not find; that is no news to the user.
        logging.getLogger("jax").setLevel(logging.WARNING)
        try:
            main(*argv[1:])
        except UserError as error:
            fail(str(error))
        except RuntimeError as error:
            # jax's own error class cannot be named here without importing jax for --help.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail("the device has too little memory for these models, prompts and batch; lower --batch_size")
        except Stopped:
            print(f"\nstopped by SIGTERM; {GO_ON}", file=sys.stderr)
            sys.exit(EXIT_STATUS)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from what is on disk", file=sys.stderr)
            sys.exit(130)

    os.umask(0o077)
    app.run(guarded)


def fail(message: str) -> None:
    """One line on stderr, status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
