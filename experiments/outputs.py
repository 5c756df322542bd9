"""What an estimation writes for people to look at, besides its tables."""

from __future__ import annotations

from typing import Any

from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_boolean("figures", True, "Write a figure per prompt and an overview.")
flags.DEFINE_list("figure_formats", ["png", "svg"], "What figures are written as, of png, svg and pdf.")
flags.DEFINE_integer(
    "report_rollouts",
    3,
    "report.html: show so many compliant and as many refused rollouts of each prompt; 0 leaves out all texts.",
    lower_bound=0,
    upper_bound=100,
)
TOPICS = {"what is written": ("figures", "figure_formats", "report_rollouts")}


def asked_fields() -> dict[str, Any]:
    """The flags as lpe_jax.job.run takes them.

    Raises:
      UserError: a format of figures is none.
    """
    from lpe_jax.errors import UserError
    from lpe_jax.reporting.figures import FORMATS
    from lpe_jax.reporting.report import Options

    formats = FLAGS.figure_formats
    if not formats or set(formats) - set(FORMATS):
        raise UserError(
            f"--figure_formats={','.join(formats)} must be some of {', '.join(FORMATS)}; see --nofigures too"
        )
    return {
        "figure_formats": tuple(dict.fromkeys(formats)) if FLAGS.figures else (),
        "report": Options(rollouts=FLAGS.report_rollouts),
    }
