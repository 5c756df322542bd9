"""The flags of methods: how rollouts are spent on a prompt and what rate is read from them."""

from __future__ import annotations

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "method",
    "lpe",
    ["lpe", "path", "naive"],
    "lpe: Logit Path Extrapolation as published, and naive rollouts where it finds no line. path: adaptive allocation, "
    "and a bending path that all prompts share. naive: rollouts of the original alone.",
)
flags.DEFINE_integer("budget", 440, "Path: rollouts per prompt.", lower_bound=1)
flags.DEFINE_float("width", 0.0, "Path: stop a prompt once its own 95 % interval spans so few decades; 0 is never.")
flags.DEFINE_integer(
    "naive_check",
    100,
    "LPE, path: naive rollouts beside, that show where the original complies more often than an estimate explains, and "
    "are the estimate where --method=lpe finds no line.",
    lower_bound=0,
)
flags.DEFINE_integer("n_search", 10, "LPE: rollouts per alpha while searching where the fit starts.")
flags.DEFINE_integer("n_fit", 100, "LPE: rollouts per alpha of the fit; the post's experiments used 13 to 100.")
flags.DEFINE_integer("n_naive", 1000, "Naive: rollouts per prompt.", lower_bound=1)
flags.DEFINE_float("alpha", 1.0, "Naive: where to draw; 1 is the original, 0 the variant.", -1e3, 1e3)
flags.DEFINE_float("amplification", None, "Naive: a = -alpha, as Logit Diff Amplification writes it.", -1e3, 1e3)
flags.DEFINE_list("alphas", None, "LPE: alphas to search, strictly decreasing. Default: 0.95 down to 0 by 0.05.")
flags.DEFINE_float("threshold", 0.5, "LPE: the search stops at the first alpha with at least this rate.")
flags.DEFINE_float(
    "fallback_rate",
    1e-6,
    "LPE: the prediction with fewer than two alphas to fit and no naive rollouts beside (--naive_check=0).",
)
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

LPE_FLAGS = (
    *("n_search", "n_fit", "threshold", "fallback_rate", "reuse_search", "drop_common"),
    *("fit_to_one", "no_start", "regression", "clip"),
)
PATH_FLAGS = ("budget", "width")
OWN_FLAGS = {"lpe": (*LPE_FLAGS, "alphas"), "path": PATH_FLAGS, "naive": ("n_naive", "alpha")}
TOPICS = {
    "the method": ("method", "naive_check"),
    "--method=lpe": OWN_FLAGS["lpe"],
    "--method=path": OWN_FLAGS["path"],
    "--method=naive": (*OWN_FLAGS["naive"], "amplification"),
}


def check() -> None:
    """Refuses flags of another method, which would be without effect.

    Raises:
      UserError: one was given.
    """
    from lpe_jax.errors import UserError

    given = [name for name in ("alpha", "amplification") if FLAGS[name].present]
    if len(given) == 2:
        raise UserError("--alpha and --amplification say the same thing twice; give one of them")
    goes_with = {name: [method] for method, names in OWN_FLAGS.items() for name in names}
    goes_with |= {"amplification": ["naive"], "naive_check": ["lpe", "path"]}
    for name, methods in goes_with.items():
        if FLAGS[name].present and FLAGS.method not in methods:
            raise UserError(f"--{name} goes with --method={' or '.join(methods)}, and the method is {FLAGS.method}")


def make_procedure(judge_quality):
    """The procedure of the flags; judge_quality may be None."""
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.lpe import LPE
    from lpe_jax.estimation.naive import Naive

    if FLAGS.method == "naive":
        # One name for it in the record of the run; 0 is written without a sign.
        FLAGS.alpha = FLAGS.alpha if FLAGS.amplification is None else 0.0 - FLAGS.amplification
        return Naive(FLAGS.n_naive, FLAGS.alpha)
    if FLAGS.method == "path":
        from lpe_jax.estimation.adaptive import Path

        try:
            sensitivity, false_alarm = (1.0, 0.0) if judge_quality is None else judge_quality.shares()
            own = {name: FLAGS[name].value for name in PATH_FLAGS}
            return Path(**own, sensitivity=sensitivity, false_alarm=false_alarm)
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
