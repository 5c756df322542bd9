"""The main job: from two models and a list of prompts to a rate with an interval for each prompt.

    python -m experiments.estimate                                   # the embedded pair, a few minutes on two cores
    python -m experiments.estimate --original=Qwen/Qwen3-4B \\
        --variant=huihui-ai/Huihui-Qwen3-4B-abliterated-v2 --prompts=harmbench_behaviors_text_all.csv --n_fit=100

Draws rollouts along the logit path between the two, has a judge say which complied, and extrapolates log10 rate to
the original (alpha = 1). Writes a run folder; the same command continues an interrupted run and leaves a finished one
alone. --dry_run says beforehand what it would take.
"""

from __future__ import annotations

from absl import flags

from experiments import judges, launch, methods, outputs, quality, vocabulary

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(vocabulary)
flags.adopt_module_key_flags(methods)
flags.adopt_module_key_flags(judges)
flags.adopt_module_key_flags(quality)
flags.adopt_module_key_flags(outputs)

EVERYDAY = ("original", "variant", "prompts", "judge", "method", "limit", "out", "dry_run")


def main() -> None:
    vocabulary.check()
    methods.check()
    judge_quality, shown = quality.judge_quality(), outputs.asked_fields()
    procedure = methods.make_procedure(judge_quality)
    check = 0 if FLAGS.method == "naive" else FLAGS.naive_check
    from lpe_jax import job

    shared = vocabulary.flag_values((*vocabulary.JOB_FLAGS, *vocabulary.RUN_FLAGS)) | judges.asked_fields()
    asked = vocabulary.flag_values(
        [
            *(*vocabulary.JOB_FLAGS, *judges.JUDGE_FLAGS, "method"),
            *methods.OWN_FLAGS[FLAGS.method],
            *("naive_check",) * (FLAGS.method != "naive"),
            *quality.QUALITY_FLAGS * (judge_quality is not None),
        ]
    )
    own = {"method": FLAGS.method, "naive_check": check, "judge_quality": judge_quality}
    wanted = job.Job(program="estimate", procedure=procedure, **own, **shared)
    if FLAGS.dry_run:
        from lpe_jax import dry

        print(*dry.of_job(wanted, out=FLAGS.out, asked=asked, speed=vocabulary.speed()), sep="\n")
        return
    job.run(
        wanted,
        out=FLAGS.out,
        asked=asked,
        flagfile=vocabulary.flagfile(asked),
        **shown,
        processes=vocabulary.processes(),
    )


if __name__ == "__main__":
    launch.run(main)
