"""The grid sweep: n rollouts of every prompt at every alpha, judged, with the sums that estimators work on.

    python -m experiments.sample --out=banks/shallow                 # the embedded pair, all 200 prompts
    python -m experiments.sample --world=worlds/deep --out=banks/deep --n=400 --n_naive=20000
    python -m experiments.sample --original=Qwen/Qwen3-4B --variant=huihui-ai/Huihui-Qwen3-4B-abliterated-v2 \\
        --prompts=harmbench_behaviors_text_all.csv --n=100 --n_naive=0

Writes a run folder with a bank: one shard per prompt. All prompts are taken unless --limit says otherwise. A prompt is
on disk as soon as it is done; the same command continues an interrupted sweep and leaves a finished one alone.
"""

from __future__ import annotations

from absl import flags

from experiments import judges, launch, vocabulary

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(vocabulary)
flags.adopt_module_key_flags(judges)

flags.DEFINE_string(
    "world", None, "Folder that experiments.train_tiny wrote, in the place of --original and --variant."
)
flags.DEFINE_list("alphas", None, "The grid, strictly decreasing from 1. Default: 1 down to 0 by 0.05.")
flags.DEFINE_integer("n", 1000, "Rollouts per prompt at each alpha.", lower_bound=1)
flags.DEFINE_integer(
    "n_naive", 100_000, "Further rollouts at alpha = 1 per prompt; only how many complied is kept.", lower_bound=0
)
flags.DEFINE_boolean(
    "share_prefixes",
    None,
    "Evaluate what rollouts of a prompt have in common once (for small models on a CPU), instead of drawing each by "
    "itself. Default: yes for the embedded pair and --world, else no.",
)
flags.DEFINE_integer(
    "processes", 2, "With --share_prefixes on CPU: children that share the work of this process.", lower_bound=1
)
flags.DEFINE_boolean(
    "grid_logps", True, "Take every rollout's log p at all alphas of the grid; --share_prefixes always does."
)
flags.DEFINE_boolean("texts", False, "Keep the text of compliant responses; that of others is never kept.")

EVERYDAY = ("original", "variant", "prompts", "judge", "alphas", "n", "n_naive", "limit", "out", "dry_run")
TOPICS = {
    "the grid": ("world", "alphas", "n", "n_naive"),
    "the sweep": ("share_prefixes", "processes", "grid_logps", "texts"),
}
SWEEP_FLAGS = ("world", "n", "n_naive", "share_prefixes", "grid_logps", "texts")


def grid() -> tuple[float, ...]:
    """--alphas as numbers."""
    from lpe_jax.errors import UserError

    if FLAGS.alphas is None:
        return tuple(round(1 - 0.05 * i, 2) for i in range(21))
    try:
        return tuple(float(alpha) for alpha in FLAGS.alphas)
    except ValueError:
        raise UserError(f"--alphas={','.join(FLAGS.alphas)} must be numbers separated by commas") from None


def main() -> None:
    vocabulary.check()
    alphas = grid()
    from lpe_jax import sweep
    from lpe_jax.errors import UserError

    values = vocabulary.flag_values([*vocabulary.JOB_FLAGS, *vocabulary.RUN_FLAGS, *SWEEP_FLAGS])
    try:
        asked_for = sweep.Sweep(
            alphas=alphas,
            processes=FLAGS.processes,
            **judges.asked_fields(),
            **values,
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None
    asked = vocabulary.flag_values([*vocabulary.JOB_FLAGS, *judges.JUDGE_FLAGS, *SWEEP_FLAGS, "alphas"])
    if FLAGS.dry_run:
        from lpe_jax import dry

        print(*dry.of_sweep(asked_for, out=FLAGS.out, asked=asked, speed=vocabulary.speed()), sep="\n")
        return
    sweep.run(
        asked_for, out=FLAGS.out, asked=asked, flagfile=vocabulary.flagfile(asked), processes=vocabulary.processes()
    )


if __name__ == "__main__":
    launch.run(main)
