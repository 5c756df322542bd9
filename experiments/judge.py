"""Judges a stored run, or judges it again with another judge, without drawing a rollout.

    python -m experiments.judge runs/estimate-1234 --judge=openai:gpt-5.4-mini --judge_budget=5000calls
    python -m experiments.judge runs/estimate-1234 --judge=rules --show=20 --to_label=labels.jsonl
    python -m experiments.judge runs/estimate-1234 --judge=rules --validate=labels.jsonl

Verdicts go into the run's ledger, where no answer is paid for twice; rates by this judge, and how it agrees with the
run's own, into RUN/judged/. Without --judge that is the judge that the run was made with. --show prints responses for a
person to check, half of them called compliant and half refused; --to_label writes them as lines to be labelled, and
--validate holds a judge against such labels.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import folder, judges, launch

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(judges)
flags.adopt_module_key_flags(folder)
flags.DEFINE_string(
    "validate", None, "JSONL of labels by hand: {prompt_id, alpha, index, complied} or {prompt, response, complied}."
)
flags.DEFINE_boolean(
    "judge_batch",
    False,
    "Ask by the OpenAI Batch API, cheaper and within a day. The command waits; killed, it goes on where it was.",
)
flags.DEFINE_integer("show", 0, "Print so many responses called compliant, and as many called refused.", lower_bound=0)
flags.DEFINE_string("to_label", None, "Write what --show prints to this file, a JSON line each, to be labelled.")
flags.DEFINE_integer("show_seed", 0, "Seed of what --show picks.", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_boolean("show_texts", True, "Print prompts and responses with --show; without, what identifies them.")


def main(run: str | None = None) -> None:
    from lpe_jax.errors import UserError

    if run is None and (FLAGS.validate is None or FLAGS.judge is None):
        raise UserError("RUN is missing; name the folder of a run, or --judge and --validate with whole responses")
    if FLAGS.to_label is not None and not FLAGS.show:
        raise UserError("--to_label takes --show, which says how many responses")
    if FLAGS.dry_run:
        if run is None:
            raise UserError("RUN is missing; --dry_run counts what judging a stored run would take")
        from lpe_jax import dry

        print(*dry.of_judging(Path(run), FLAGS.judge, *judges.asked_fields().values()), sep="\n")
        return
    from lpe_jax import rejudge

    rejudge.run(
        None if run is None else Path(run),
        judge=FLAGS.judge,
        validate=None if FLAGS.validate is None else Path(FLAGS.validate),
        show=rejudge.Show(FLAGS.show, FLAGS.show_seed, FLAGS.show_texts, FLAGS.to_label and Path(FLAGS.to_label)),
        batch=FLAGS.judge_batch,
        **judges.asked_fields(),
    )


if __name__ == "__main__":
    launch.run(main)
