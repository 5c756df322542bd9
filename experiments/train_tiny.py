"""Rebuilds the embedded pair: trains the original, ablates the variant, writes prompts, and the table of true rates.

python -m experiments.train_tiny --out=worlds/shallow                  # under ten minutes on two cores
python -m experiments.train_tiny --out=worlds/shallow --steps=truth    # its true rates, about half an hour
python -m experiments.train_tiny --world=deep --out=worlds/deep
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "world", "shallow", "Which world: shallow (nearly all is decided at once) or deep (four grave decisions)."
)
flags.DEFINE_string("out", None, "Folder to write. Default: the package's own, lpe_jax/tiny/data/<world>.")
flags.DEFINE_integer("seed", 0, "Decides weights, data, direction and prompts.", lower_bound=0)
flags.DEFINE_list("steps", ["train"], "What to do, in this order: train (the pair), truth (the table of true rates).")
flags.DEFINE_integer("n_naive", 1_000_000, "Truth: most rollouts of the original per prompt.", lower_bound=100_000)
flags.DEFINE_integer("n_check", 1_000_000, "Truth: most rollouts of the original left out as a check.", lower_bound=0)
flags.DEFINE_integer("limit", None, "Truth: the first so many prompts only. Default: all.", lower_bound=1)
flags.DEFINE_integer("complied", 100, "Truth: compliant rollouts aimed at per alpha.", lower_bound=10)
flags.DEFINE_integer("most", 3_000_000, "Truth: most rollouts per alpha to get them.", lower_bound=1000)
flags.DEFINE_integer("processes", 2, "Truth: processes that share the prompts.", lower_bound=1)
flags.DEFINE_integer("base_steps", None, "Steps of the helpful base. Default: the recipe's.", lower_bound=1)
flags.DEFINE_integer("safety_steps", None, "Steps of the safety stage. Default: the recipe's.", lower_bound=1)


def main() -> None:
    from lpe_jax import tiny
    from lpe_jax.errors import UserError
    from lpe_jax.tiny.world import WORLDS

    if FLAGS.world not in WORLDS:
        raise UserError(f"--world={FLAGS.world} is not known; choose {' or '.join(WORLDS)}")
    if unknown := set(FLAGS.steps) - {"train", "truth"}:
        raise UserError(f"--steps={','.join(FLAGS.steps)}: {unknown.pop()!r} is not known; choose from train, truth")
    out = Path(FLAGS.out) if FLAGS.out else Path(tiny.__file__).parent / "data" / FLAGS.world
    if "train" in FLAGS.steps:
        train(WORLDS[FLAGS.world], out)
    if "truth" in FLAGS.steps:
        truth(out)


def train(world, out: Path) -> None:
    """Builds the pair and its prompts in the place of out."""
    from lpe_jax.tiny.build import Settings, build_world
    from lpe_jax.tiny.training import BASE, SAFETY

    out.parent.mkdir(parents=True, exist_ok=True)
    base = dataclasses.replace(BASE, steps=FLAGS.base_steps or BASE.steps)
    safety = dataclasses.replace(SAFETY, steps=FLAGS.safety_steps or SAFETY.steps)
    build_world(world, Settings(base, safety, FLAGS.seed), out)


def truth(out: Path) -> None:
    """Samples the true rates of the pair in out and writes truth.json beside it."""
    from lpe_jax.decoding.path import SamplingSettings
    from lpe_jax.tiny.truth import Bank, compute_truth, describe_check, write_truth

    table = compute_truth(
        out,
        seed=FLAGS.seed,
        n_naive=FLAGS.n_naive,
        n_check=FLAGS.n_check,
        bank=Bank(complied=FLAGS.complied, most=FLAGS.most),
        settings=SamplingSettings(max_new_tokens=64),
        limit=FLAGS.limit,
        processes=FLAGS.processes,
        progress=lambda line: print(line, flush=True),
    )
    print(describe_check(table["check"]))
    print(f"wrote {write_truth(out, table)}")


if __name__ == "__main__":
    launch.run(main)
