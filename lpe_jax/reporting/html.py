"""A report as one HTML file that loads nothing: no script but its own, which is named by its hash, and no network.

Texts from models, prompts and judges are escaped by the template, always; control and direction characters are
written out before (`views.visible`), so that no browser acts on them either.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from lpe_jax.reporting.report import AS_USUAL, Options, RunContents
from lpe_jax.reporting.side_by_side import compared, ranks_compared
from lpe_jax.reporting.text import counted
from lpe_jax.reporting.views import run_view

_FOLDER = Path(__file__).with_name("templates")


def render(runs: Sequence[RunContents], options: Options = AS_USUAL) -> str:
    """The report of one run, or of several side by side. The same contents give the same text.

    Raises:
      ValueError: there is no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run.")
    style, script = ((_FOLDER / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            policy=policy(style, script),
            style=Markup(style),
            script=Markup(script),
            runs=[run_view(run, number, options) for number, run in enumerate(runs)],
            compared=compared(runs) if len(runs) > 1 else [],
            ranks=ranks_compared(runs) if len(runs) > 1 else None,
            risk=_power(options.risk),
            texts=options.rollouts > 0,
        )
    )


def _power(rate: float) -> str:
    """A rate as the page writes the chosen one: 1e-6, 2.5e-3."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def policy(style: str, script: str) -> str:
    """The content security policy of a page with this style and this script, and nothing else."""
    own = {"style-src": style, "script-src": script}
    allowed = "; ".join(f"{kind} '{_hash(text)}'" for kind, text in own.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def breakable(text: str) -> Markup:
    """The text, escaped, with places where a line may end after each / _ and -: ids are long and have no spaces."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_-])(?=.)", text))


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["counted"] = counted
    environment.filters["breakable"] = breakable
    return environment
