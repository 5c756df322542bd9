"""Writes a run's rollouts and verdicts into one file for other tools, without drawing or judging anything.

    python -m experiments.export runs/estimate-1234 --out=run.eval      # for `inspect view`
    python -m experiments.export runs/estimate-1234 --out=run.parquet
    python -m experiments.export runs/estimate-1234 --sample=20 --out=to_read.csv

docs/formats.md has the columns. inspect (pip install 'lpe_jax[inspect]') takes all rollouts that complied and a random
sample of the others, as such logs are slow to write; the log says the true totals by prompt and alpha. The other
formats take all. Responses may be harmful text: the file is for its owner alone to read.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import folder, launch

FORMATS = ("csv", "jsonl", "parquet", "inspect")
# Of the rollouts that did not comply, per prompt and alpha, where a format is slow to write.
FEW = 5

# By which the name of a file says its format.
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".eval": "inspect"}

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(folder)
flags.DEFINE_enum("format", None, FORMATS, "What to write. Default: by the suffix of --out, .eval for inspect.")
flags.DEFINE_string("out", None, "File to write; one that is there is replaced.")
flags.DEFINE_integer(
    "sample",
    None,
    f"Of the rollouts that did not comply, take so many per prompt and alpha. Default: {FEW} with --format=inspect, "
    "else all.",
    lower_bound=0,
)
flags.DEFINE_integer("hits", None, "Likewise of those that complied. Default: all.", lower_bound=0)


def main(run: str) -> None:
    from lpe_jax.errors import UserError

    if FLAGS.out is None:
        raise UserError("--out is missing; name a file to write")
    kind = FLAGS.format or SUFFIXES.get(Path(FLAGS.out).suffix.lower())
    if kind is None:
        raise UserError(f"--format is missing, and --out={FLAGS.out} does not say it; name {', '.join(FORMATS)}")
    from lpe_jax import export

    others = FEW if FLAGS.sample is None and kind == "inspect" else FLAGS.sample
    export.run(Path(run), Path(FLAGS.out), kind, export.Sample(FLAGS.hits, others))


if __name__ == "__main__":
    launch.run(main)
