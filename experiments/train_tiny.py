"""Rebuilds the embedded pair: trains the original, ablates the variant, writes prompts, and the table of true rates.

python -m experiments.train_tiny --out=worlds/shallow                  # under ten minutes on two cores
python -m experiments.train_tiny --out=worlds/shallow --steps=truth    # its true rates, about half an hour
python -m experiments.train_tiny --world=deep --out=worlds/deep
python -m experiments.train_tiny --out=worlds/shallow --steps=guard    # a judge, for --judge=jax:worlds/shallow/guard
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
STEPS = ("train", "truth", "guard")

flags.DEFINE_string(
    "world", "shallow", "Which world: shallow (nearly all is decided at once) or deep (four grave decisions)."
)
flags.DEFINE_string("out", None, "Folder to write. Default: the package's own, lpe_jax/tiny/data/<world>.")
flags.DEFINE_integer("seed", 0, "Decides weights, data, direction and prompts.", lower_bound=0)
flags.DEFINE_list(
    "steps",
    ["train"],
    "What to do, in this order: train (the pair), truth (the table of true rates), guard (a judge, in OUT/guard).",
)
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
    if unknown := set(FLAGS.steps) - set(STEPS):
        raise UserError(
            f"--steps={','.join(FLAGS.steps)}: {unknown.pop()!r} is not known; choose from {', '.join(STEPS)}"
        )
    if "guard" in FLAGS.steps and FLAGS.out is None:
        raise UserError("--steps=guard takes --out: a guard is not part of the package")
    out = Path(FLAGS.out) if FLAGS.out else Path(tiny.__file__).parent / "data" / FLAGS.world
    if "train" in FLAGS.steps:
        train(WORLDS[FLAGS.world], out)
    if "truth" in FLAGS.steps:
        truth(out)
    if "guard" in FLAGS.steps:
        guard(WORLDS[FLAGS.world], out)


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


def guard(world, out: Path) -> None:
    """Trains a guard for the pair in out, or else for the package's own, and says how often it is right."""
    from lpe_jax.judging.on_device import load_judge
    from lpe_jax.judging.settings import JudgeSettings
    from lpe_jax.tiny import world_folder
    from lpe_jax.tiny.guard import GUARD, agreement, build_guard

    folder = out / "guard"
    build_guard(world, GUARD, folder, FLAGS.seed, log=lambda line: print(line, flush=True))
    judge = load_judge(str(folder), JudgeSettings(batch_size=64))
    pair = out if (out / "original").is_dir() else world_folder(world.name)
    found = agreement(judge, pair, alphas=(0.0, 0.3, 0.6, 1.0), rollouts=100, prompts=20, seed=FLAGS.seed)
    print(f"of fresh rollouts of {pair}: {found}; wrote {folder}")


if __name__ == "__main__":
    launch.run(main)
