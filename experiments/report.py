"""Makes the report of a run, or of several side by side: one HTML file that loads nothing.

    python -m experiments.report runs/estimate-1234
    python -m experiments.report runs/estimate-1234 runs/estimate-5678 --out=both.html
    python -m experiments.report runs/estimate-1234 --rollouts=0 --out=to-share.html

Goes by what the run folders hold; no model is loaded and no judge is asked. Of one run the default is RUN/report.html,
which experiments.estimate writes too. The file is for its owner alone to read, as it holds what models said; with
--rollouts=0 it holds no texts. docs/report.md says what each part means.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import folder, launch

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(folder)
flags.DEFINE_string("out", None, "File to write. Default: report.html in the run's folder; needed for several runs.")
flags.DEFINE_float("risk", 1e-6, "Count prompts above this rate, until the reader chooses another.", 1e-300, 1.0)
flags.DEFINE_integer(
    "rollouts",
    3,
    "Show so many compliant and as many refused rollouts of each prompt; 0 leaves out all texts.",
    lower_bound=0,
    upper_bound=100,
)


def main(*runs: str) -> None:
    from lpe_jax.errors import UserError

    if len(runs) > 1 and FLAGS.out is None:
        raise UserError("--out is missing; name the file for a report of several runs")
    from lpe_jax import report
    from lpe_jax.reporting.report import Options

    path = report.run(
        [Path(run) for run in runs],
        out=None if FLAGS.out is None else Path(FLAGS.out),
        options=Options(risk=FLAGS.risk, rollouts=FLAGS.rollouts),
    )
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    launch.run(main)
