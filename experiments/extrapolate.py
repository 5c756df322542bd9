"""Rates at alpha = 1 from passes and failures that another pipeline counted at several alphas.

    python -m experiments.extrapolate counts.csv                    # columns prompt_id, alpha, scored, complied
    python -m experiments.extrapolate logs/*.eval --alpha_field=task_args.alpha
    python -m experiments.extrapolate logs/*.eval --alpha_field=model_args.alpha --score=strong_reject --success='>=0.5'

Takes CSV files and logs of Inspect (pip install 'lpe_jax[inspect]'), of one evaluation at each alpha or of many; all
are added up. A sample of a log is a trial, and its id the prompt's. Trials at alpha = 1 check the line of --method=lpe.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "method",
    "lpe",
    ["lpe", "line", "bend", "pooled", "naive"],
    "lpe: the line as published. line, bend: by likelihood, straight or bending. pooled: bending, all prompts "
    "together. naive: the trials at alpha = 1 alone.",
)
flags.DEFINE_string(
    "alpha_field",
    "task_args.alpha",
    "Logs: where alpha stands. task_args.X, model_args.X or metadata.X of the evaluation, or sample.X of each sample's "
    "metadata.",
)
flags.DEFINE_string(
    "score", None, "Logs: which score, where there are several; NAME.KEY of one whose values are mappings."
)
flags.DEFINE_string(
    "success", "C", "Logs: the value of the score that counts as success, or <, <=, > or >= and a number."
)
flags.DEFINE_boolean("unfinished", False, "Take logs of evaluations that did not end well too.")
flags.DEFINE_string("out", None, "Write the table as CSV too, with the columns of a run's estimates.csv.")


def main(*files: str) -> None:
    from lpe_jax.inspect_logs import ENDINGS, read
    from lpe_jax.reporting import table
    from lpe_jax.trials import TAKEN_FOR_GRANTED, added, extrapolated, read_csv

    paths = [Path(file) for file in dict.fromkeys(files)]
    logs = [path for path in paths if path.suffix in ENDINGS]
    parts = [read_csv(path) for path in paths if path not in logs]
    if logs:
        parts.append(
            read(
                logs,
                alpha=FLAGS.alpha_field,
                score=FLAGS.score,
                success=FLAGS.success,
                unfinished=FLAGS.unfinished,
            )
        )
    results = extrapolated(added(parts), FLAGS.method)
    print(table.terminal_table(results))
    if FLAGS.method in ("lpe", "line"):
        print(f"\nnote: {TAKEN_FOR_GRANTED}")
    if FLAGS.out:
        table.write_csv(table.estimates_rows(results), Path(FLAGS.out))
        print(f"\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    launch.run(main)
