"""How fast rollouts are drawn, against what a user would run instead, at equal work.

    python -m experiments.benchmark       # all that a CPU can do; about an hour
    python -m experiments.benchmark --workloads=embedded,naive --rounds=5
    python -m experiments.benchmark --workloads=qwen3-4b-32,qwen3-4b-1024 --json=gpu.json      # takes a GPU

Peers are a loop over two Hugging Face models, in the fastest of several ways of writing it, and `generate` with
transformers' own processor for two models. All draw the same requests in every round, to their own end of sequence;
what counts are tokens up to it. Rounds alternate between contestants, and ratios are taken within a round. The peers
need torch: pip install 'lpe_jax[test]'.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "workloads",
    None,
    "Which to run: embedded, naive, vocab4096, real60, real60-eos, real512, dual; on a GPU also qwen3-4b-ROWS with "
    "ROWS 32, 128, 512 or 1024. Default: all but the last.",
)
flags.DEFINE_list(
    "modes", ["ablated", "shared", "copies"], "How our pair keeps its weights, see --pair_mode of other programs."
)
flags.DEFINE_integer("rounds", 3, "How often each contestant runs.", lower_bound=1)
flags.DEFINE_boolean("peers", True, "Run the torch peers; without them our modes are compared alone.")
flags.DEFINE_list(
    "loops",
    None,
    "Ways of writing the loop that are tried: dynamic, per-row, preallocated, static, compiled. Default: all.",
)
flags.DEFINE_integer("finalists", 2, "So many of the loops that were fastest over a batch enter the rounds.", 1)
flags.DEFINE_integer("compile_limit", 240, "Seconds that torch.compile may take, per workload.", lower_bound=1)
flags.DEFINE_boolean("generate", True, "Run transformers' `generate` too, which is several times as slow as a loop.")
flags.DEFINE_boolean("quick", False, "A smoke test: tiny shapes, seconds each; its figures mean nothing.")
flags.DEFINE_string("json", None, "Write everything, all rounds included, to this file.")


def main() -> None:
    import importlib

    from lpe_jax.benchmark import engine, report, run, workloads
    from lpe_jax.errors import UserError

    names = workloads.NAMES if FLAGS.workloads is None else FLAGS.workloads
    known = (*workloads.NAMES, *workloads.GPU)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--workloads={unknown[0]} is none of {', '.join(known)}")
    if not names:
        raise UserError(f"--workloads names none; choose from {', '.join(known)}")
    if unknown := [mode for mode in FLAGS.modes if mode not in engine.MODES]:
        raise UserError(f"--modes={unknown[0]} is none of {', '.join(engine.MODES)}")
    if not FLAGS.modes:
        raise UserError(f"--modes names none; choose from {', '.join(engine.MODES)}")
    loops = run.LOOPS if FLAGS.loops is None else FLAGS.loops
    if not loops or not set(loops) <= set(run.LOOPS):
        raise UserError(f"--loops={','.join(loops)} must be some of {', '.join(run.LOOPS)}")
    if FLAGS.json and not Path(FLAGS.json).expanduser().absolute().parent.is_dir():
        raise UserError(f"--json={FLAGS.json}: there is no such folder")
    if FLAGS.peers:
        run.check_torch(importlib.import_module)
    options = run.Options(
        rounds=FLAGS.rounds,
        modes=tuple(FLAGS.modes),
        peers=FLAGS.peers,
        loops=tuple(loops),
        finalists=FLAGS.finalists,
        compile_limit=FLAGS.compile_limit,
        generate=FLAGS.generate,
        quick=FLAGS.quick,
    )
    about = report.machine()
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load'][0]:.1f}, {about['date']}")
    print(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    found = []
    for name in names:
        found.append(run.measure_apart(name, options))
        print("\n" + report.table(found[-1]), flush=True)
        if FLAGS.json:
            # After each, so that what took long is kept whatever comes later.
            report.write_json(Path(FLAGS.json).expanduser(), found, options)
    if FLAGS.json:
        print(f"\nwritten to {FLAGS.json}")


if __name__ == "__main__":
    launch.run(main)
