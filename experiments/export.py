"""Writes a run's rollouts and verdicts into one file for other tools, without drawing or judging anything.

    python -m experiments.export --run=runs/estimate-1234 --format=inspect --out=run.eval      # for `inspect view`
    python -m experiments.export --run=runs/estimate-1234 --format=parquet --out=run.parquet
    python -m experiments.export --run=runs/estimate-1234 --format=csv --sample=20 --out=to_read.csv

docs/formats.md has the columns. inspect (pip install 'lpe_jax[inspect]') takes all rollouts that complied and a random
sample of the others, as such logs are slow to write; the log says the true totals by prompt and alpha. The other
formats take all. Responses may be harmful text: the file is for its owner alone to read.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import launch

FORMATS = ("csv", "jsonl", "parquet", "inspect")
# Of the rollouts that did not comply, per prompt and alpha, where a format is slow to write.
FEW = 5

FLAGS = flags.FLAGS
flags.DEFINE_string("run", None, "Run folder of experiments.estimate.")
flags.DEFINE_enum("format", None, FORMATS, "What to write.")
flags.DEFINE_string("out", None, "File to write; one that is there is replaced.")
flags.DEFINE_integer(
    "sample",
    None,
    f"Of the rollouts that did not comply, take so many per prompt and alpha. Default: {FEW} with --format=inspect, "
    "else all.",
    lower_bound=0,
)
flags.DEFINE_integer("hits", None, "Likewise of those that complied. Default: all.", lower_bound=0)


def main() -> None:
    from lpe_jax.errors import UserError

    for name, what in (("run", "the folder of a run"), ("format", ", ".join(FORMATS)), ("out", "a file to write")):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; name {what}")
    from lpe_jax import export

    others = FEW if FLAGS.sample is None and FLAGS.format == "inspect" else FLAGS.sample
    export.run(Path(FLAGS.run), Path(FLAGS.out), FLAGS.format, export.Sample(FLAGS.hits, others))


if __name__ == "__main__":
    launch.run(main)
