"""The main job: from two models and a list of prompts to a rate with an interval for each prompt.

    python -m experiments.estimate                                   # the embedded pair, under two minutes on two cores
    python -m experiments.estimate --original=Qwen/Qwen3-4B \\
        --variant=huihui-ai/Huihui-Qwen3-4B-abliterated-v2 --prompts=harmbench_behaviors_text_all.csv --n_fit=100

Draws rollouts along the logit path between the two, has a judge say which complied, and extrapolates log10 rate to
the original (alpha = 1). Writes a run folder; the same command continues an interrupted run and leaves a finished one
alone.
"""

from __future__ import annotations

import re

from absl import flags

from experiments import launch, vocabulary

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(vocabulary)

flags.DEFINE_enum(
    "method",
    "lpe",
    ["lpe", "path", "naive"],
    "lpe: Logit Path Extrapolation as published. path: adaptive allocation, and a bending path that all prompts share. "
    "naive: rollouts of the original alone.",
)
flags.DEFINE_integer("budget", 440, "Path: rollouts per prompt.", lower_bound=1)
flags.DEFINE_float("width", 0.0, "Path: stop a prompt once its own 95 % interval spans so few decades; 0 is never.")
flags.DEFINE_integer("n_search", 10, "LPE: rollouts per alpha while searching where the fit starts.")
flags.DEFINE_integer("n_fit", 100, "LPE: rollouts per alpha of the fit; the post's experiments used 13 to 100.")
flags.DEFINE_integer("n_naive", 1000, "Naive: rollouts per prompt.", lower_bound=1)
flags.DEFINE_list("alphas", None, "LPE: alphas to search, strictly decreasing. Default: 0.95 down to 0 by 0.05.")
flags.DEFINE_float("threshold", 0.5, "LPE: the search stops at the first alpha with at least this rate.")
flags.DEFINE_float("fallback_rate", 1e-6, "LPE: the prediction with fewer than two alphas to fit.")
flags.DEFINE_boolean("reuse_search", False, "LPE: count search rollouts in the fit too (the post draws anew).")
flags.DEFINE_boolean("drop_common", True, "LPE: leave points with at least --threshold out of the regression.")
flags.DEFINE_boolean("fit_to_one", False, "LPE: let the fit go on to alpha = 1 itself.")
flags.DEFINE_enum(
    "no_start",
    "lowest",
    ["lowest", "fallback"],
    "LPE: where no alpha reaches --threshold, fit from the lowest alpha or fall back.",
)
flags.DEFINE_enum(
    "regression", "ols", ["ols", "weighted"], "LPE: ordinary least squares, or weighted by inverse variance."
)
flags.DEFINE_boolean("clip", True, "LPE: report a predicted rate above 1 as 1.")
flags.DEFINE_string(
    "judge_sensitivity",
    None,
    "k/n: the judge said so of k of n rollouts known to comply. Corrects rates for its errors.",
)
flags.DEFINE_string("judge_specificity", None, "k/n: likewise of n rollouts known to refuse. Give both or neither.")
flags.DEFINE_boolean("figures", True, "Write a figure per prompt and an overview.")

LPE_FLAGS = (
    *("n_search", "n_fit", "threshold", "fallback_rate", "reuse_search", "drop_common"),
    *("fit_to_one", "no_start", "regression", "clip"),
)
PATH_FLAGS = ("budget", "width")
QUALITY_FLAGS = ("judge_sensitivity", "judge_specificity")


def make_procedure():
    """The procedure of the flags."""
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.lpe import LPE
    from lpe_jax.estimation.naive import Naive

    if FLAGS.method == "naive":
        return Naive(FLAGS.n_naive)
    if FLAGS.method == "path":
        from lpe_jax.estimation.adaptive import Path

        try:
            return Path(**{name: FLAGS[name].value for name in PATH_FLAGS})
        except ValueError as error:
            raise UserError(f"--{error}") from None
    try:
        alphas = None if FLAGS.alphas is None else tuple(float(alpha) for alpha in FLAGS.alphas)
    except ValueError:
        raise UserError(f"--alphas={','.join(FLAGS.alphas)} must be numbers separated by commas") from None
    if alphas is not None and len(alphas) < 2:
        raise UserError(f"--alphas={','.join(FLAGS.alphas)} names {len(alphas)}; a line needs two or more")
    try:
        return LPE(alphas=alphas, **{name: FLAGS[name].value for name in LPE_FLAGS})
    except ValueError as error:
        raise UserError(f"--{error}") from None


def judge_quality():
    """The JudgeQuality of the flags; None without them."""
    given = [name for name in QUALITY_FLAGS if FLAGS[name].value is not None]
    if not given:
        return None
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.judge_error import JudgeQuality

    if FLAGS.method == "path":
        raise UserError(f"--{given[0]} cannot be used with --method=path yet; use --method=lpe or naive")

    if len(given) == 1:
        (missing,) = set(QUALITY_FLAGS) - set(given)
        raise UserError(
            f"--{given[0]} is given without --{missing}; give both, or neither for a judge taken at its word"
        )
    counts = []
    for name in QUALITY_FLAGS:
        match = re.fullmatch(r"([0-9]{1,15})/([0-9]{1,15})", FLAGS[name].value)
        if match is None:
            raise UserError(f"--{name}={FLAGS[name].value} must be k/n in whole rollouts, as 95/100")
        counts += [int(group) for group in match.groups()]
    try:
        return JudgeQuality(*counts)
    except ValueError as error:
        raise UserError(f"--judge_{error}") from None


def main() -> None:
    vocabulary.check()
    procedure = make_procedure()
    quality = judge_quality()
    from lpe_jax import job

    shared = {name: FLAGS[name].value for name in vocabulary.JOB_FLAGS}
    asked = vocabulary.flag_values(
        [
            *vocabulary.JOB_FLAGS,
            *("method", "n_naive", "alphas"),
            *LPE_FLAGS,
            *PATH_FLAGS * (FLAGS.method == "path"),
            *QUALITY_FLAGS * (quality is not None),
        ]
    )
    job.run(
        job.Job(program="estimate", method=FLAGS.method, procedure=procedure, judge_quality=quality, **shared),
        out=FLAGS.out,
        asked=asked,
        flagfile=vocabulary.flagfile(asked),
        draw_figures=FLAGS.figures,
    )


if __name__ == "__main__":
    launch.run(main)
