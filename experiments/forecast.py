"""From the rates of some prompts to the risk of a deployment, and how well such forecasts have held.

    python -m experiments.forecast runs/estimate-1234 --queries=1e4,1e6,1e9
    python -m experiments.forecast --backtest   # on the embedded world's true rates, or --estimates with truths

Prints worst-query risk, aggregate risk and behaviour frequency with 95 % intervals, or, for a backtest, the errors of
forecasts made from a random part of the prompts when held against the others. lpe_jax/estimation/forecast.py explains.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import folder, launch

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(folder)
flags.DEFINE_string("estimates", None, "A table of rates with the columns of a run's estimates.csv, instead of a run.")
flags.DEFINE_string("estimator", None, "Which of the file's methods to take, where it holds several.")
flags.DEFINE_list("queries", ["1e4", "1e6", "1e9"], "Sizes of deployment, in queries.")
flags.DEFINE_list("thresholds", ["1e-3", "1e-2", "0.5"], "Rates for the share of queries that exceed them.")
flags.DEFINE_enum("method", "both", ["gumbel", "lognormal", "both"], "The form taken for the distribution of rates.")
flags.DEFINE_enum(
    "rate_noise", "corrected", ["corrected", "drawn", "none"], "What is done about the rates being estimates."
)
flags.DEFINE_integer("top", None, "Gumbel: fit the tail to so many of the largest rates; default 10, or half.", 2)
flags.DEFINE_integer("draws", 300, "Draws behind a forecast, and resamples behind its interval.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Seed of draws and splits.", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_string("out", None, "Write the forecast as CSV too.")
flags.DEFINE_boolean("backtest", False, "Forecast from some of the prompts what the others hold.")
flags.DEFINE_string("truth_column", "truth", "Backtest: the column that counts as the truth; may be rate.")
flags.DEFINE_integer("evaluated", None, "Backtest: prompts a forecast is made from; default: half.", lower_bound=2)
flags.DEFINE_integer("repeats", 100, "Backtest: random splits.", lower_bound=1)
flags.DEFINE_float("noise", 0.3, "Backtest without a file: error of the rates in log10, one sd.", lower_bound=0.0)

MEANS = """worst: the rate of the riskiest of so many queries. aggregate: the chance that any of them complies, of one
answer each. frequency: the share of queries whose rate is above. In brackets 95 % intervals."""
ASSUMES = """It is assumed that a deployment's queries come from the distribution that these prompts were drawn from,
one answer to each, and (gumbel) that the tail of the score -log(-log rate) stays exponential beyond the
prompts seen, or (lognormal) that all scores are normal. Nothing here can tell whether that holds."""
PUBLISHED = """Published on another data set (Jones et al. 2025), gumbel / lognormal, mean absolute log error: misuse
worst query 1.7 / 2.4, frequency 0.76-0.84 / 3.31-4.04, aggregate 1.3 / 2.5; underestimates 34 % / 72 %."""


def numbers(name: str, low: float, high: float) -> list[float]:
    """The values of a list flag, which must lie between low and high."""
    from lpe_jax.errors import UserError

    try:
        values = [float(text) for text in FLAGS[name].value]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise UserError(f"--{name}={','.join(FLAGS[name].value)} must be numbers between {low:g} and {high:g}")
    return values


def forecast_file(methods: list[str], thresholds: list[float]) -> None:
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.forecast import Rates, forecast, known_from_above_only, tail_size
    from lpe_jax.records.files import write_whole
    from lpe_jax.reporting.columns import read_log10
    from lpe_jax.reporting.text import format_interval, format_rate

    rates = Rates(*read_log10(FLAGS.estimates, "rate", "low", "high", method=FLAGS.estimator))
    queries, rows = numbers("queries", 1, 1e30), []
    top = FLAGS.top or tail_size(len(rates.log10_rate))
    settings = {"top": top, "noise": FLAGS.rate_noise, "draws": FLAGS.draws, "seed": FLAGS.seed}
    above_only = int(known_from_above_only(rates).sum())
    print(
        f"{len(rates.log10_rate)} prompts, {above_only} of them bounded from above only; the tail is that of {top}; "
        f"rate noise {FLAGS.rate_noise}"
    )
    for method in methods:
        try:
            found = forecast(rates, queries, thresholds, method=method, **settings)
        except ValueError as error:
            raise UserError(f"{FLAGS.estimates}: {error}") from None
        for name, of, at in (("worst", "queries", queries), ("aggregate", "queries", queries),
                             ("frequency", "rates above", thresholds)):  # fmt: skip
            for value, *ends in zip(at, *(getattr(found, name + end) for end in ("", "_low", "_high")), strict=True):
                print(f"{method:<10}{name:<10}{value:>10g} {of:<12}{format_interval(*map(float, ends))}")
                rows.append([method, name, f"{value:g}", *(format_rate(float(end), digits=6) for end in ends)])
    print(f"{MEANS}\n{ASSUMES}")
    if FLAGS.out:
        lines = [",".join(row) for row in [["method", "quantity", "at", "value", "low", "high"], *rows]]
        write_whole(Path(FLAGS.out), "\n".join(lines) + "\n")
        print(f"written to {FLAGS.out}")


def backtest_table(methods: list[str], thresholds: list[float]) -> None:
    import numpy as np

    from lpe_jax.errors import UserError
    from lpe_jax.estimation.backtest import backtest
    from lpe_jax.estimation.forecast import Rates, tail_size
    from lpe_jax.reporting.columns import read_log10
    from lpe_jax.tiny import world_folder
    from lpe_jax.tiny.truth import read_truth

    rates, source = FLAGS.noise, f"embedded world, noise {FLAGS.noise:g} in log10"
    if FLAGS.estimates:
        names = ("rate", "low", "high", FLAGS.truth_column)
        *columns, truth = read_log10(FLAGS.estimates, *names, method=FLAGS.estimator)
        rates, source = Rates(*columns), FLAGS.estimates
    else:
        truth = np.array([row.log10_rate for row in read_truth(world_folder()).values()])
    evaluated = FLAGS.evaluated or len(truth) // 2
    kinds = tuple(dict.fromkeys([FLAGS.rate_noise, "none"]))
    top = FLAGS.top or tail_size(evaluated)
    settings = {"splits": FLAGS.repeats, "top": top, "draws": min(FLAGS.draws, 100), "seed": FLAGS.seed}
    try:
        found = backtest(rates, truth, thresholds, evaluated=evaluated, noise=kinds, **settings)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    print(f"{source}: {FLAGS.repeats} splits, {evaluated} prompts for {len(truth) - evaluated}")
    print("mean |log10 error| and share of underestimates; the 1 - 1/n quantile is below the maximum 63 % of the time")
    for (method, kind), errors in found.items():
        if method in methods:
            cells = []
            for name in ("worst", "aggregate", "frequency"):
                error = getattr(errors, name)
                error = error[np.isfinite(error)]
                cell = f"{abs(error).mean():5.2f} {(error < 0).mean():4.0%}" if error.size else "-"
                cells.append(f"{name} {cell}")
            print(f"{method:<10}rate noise {kind:<10}" + "   ".join(cells))
    print(PUBLISHED)


def main(run: str | None = None) -> None:
    from lpe_jax.errors import UserError

    if run is not None and FLAGS.estimates:
        raise UserError(f"rates are named in two ways, {run!r} and --estimates={FLAGS.estimates}; choose one of them")
    FLAGS.estimates = FLAGS.estimates if run is None else str(Path(run) / "estimates.csv")
    methods = ["gumbel", "lognormal"] if FLAGS.method == "both" else [FLAGS.method]
    thresholds = numbers("thresholds", 1e-300, 1 - 1e-12)
    if FLAGS.backtest:
        return backtest_table(methods, thresholds)
    if not FLAGS.estimates:
        raise UserError("RUN is missing; name a run folder, or a table with --estimates, or ask for --backtest")
    forecast_file(methods, thresholds)


if __name__ == "__main__":
    launch.run(main)
