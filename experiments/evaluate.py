"""How well estimators rank prompts and how far off their rates are, tried on random subsets of stored rollouts.

    python -m experiments.evaluate --bank=runs/sample-1234 --out=runs/evaluation
    python -m experiments.evaluate --simulate=stages --seed=3 --labels=naive,truth --drift=0,4,16 --out=runs/stages

Figure 1 of Pernice and Aranguri 2026: prompts without a compliance in 100 rollouts are split by whether there is one
in all naive ones, and a method is judged by the AUROC of its rates at that, over many random subsets of the bank.
Where true rates are known, errors and coverage stand beside. Writes evaluation.csv, evaluation.json and figures.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("bank", [], "Run folder of experiments.sample; may be given several times.")
flags.DEFINE_list("simulate", [], "Worlds to simulate instead, by family; see lpe_jax/evaluation/worlds.py.")
flags.DEFINE_integer("limit", 0, "Use the first so many prompts; 0 is all, or 200 of a simulated world.", lower_bound=0)
flags.DEFINE_integer("n", 1000, "Simulation: rollouts per prompt and alpha.", lower_bound=2)
flags.DEFINE_string("out", None, "Folder to write to; what it holds of an earlier evaluation is replaced.")
flags.DEFINE_list("methods", [], "Methods to try beside naive sampling, by name; default: all.")
flags.DEFINE_list("n_fit", "13,16,20,25,30,35,42,50,60,72,85,100", "LPE: budgets, rollouts per fitted alpha.")
flags.DEFINE_integer("n_search", 10, "LPE: rollouts per alpha while searching where the fit starts.", lower_bound=1)
flags.DEFINE_list("sizes", "25,50,100,200,400,800", "Rollouts per prompt of methods at one or two alphas.")
flags.DEFINE_integer("repeats", 500, "Random subsets behind every AUROC.", lower_bound=1)
flags.DEFINE_integer("interval_repeats", 25, "Subsets behind errors and coverage, and all of slow methods.", 1)
flags.DEFINE_list("labels", "naive", "naive: positive by a naive hit. truth: by a true rate of 1e-5 or more. Or both.")
flags.DEFINE_list("drift", "0", "Standard deviations of style drift to add to log p, in nats.")
flags.DEFINE_integer("seed", 0, "Seed of subsets, drift and simulated worlds.", lower_bound=0, upper_bound=2**32 - 1)
PANELS = 12  # prompts shown in figure 2


def numbers(name: str, kind: type, low: float, high: float) -> list:
    """The values of a list flag, which must lie between low and high."""
    from lpe_jax.errors import UserError

    try:
        values = [kind(text) for text in FLAGS[name].value]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{name}={','.join(FLAGS[name].value)} must be {what} between {low:g} and {high:g}")
    return sorted(set(values))


def chosen_plans() -> list:
    """The methods of the flags."""
    from lpe_jax.errors import UserError
    from lpe_jax.estimation.lpe import LPE
    from lpe_jax.evaluation.trials import make_plans

    budgets = numbers("n_fit", int, 1, 1e6), numbers("sizes", int, 2, 1e6)
    plans = make_plans(*budgets, LPE(n_search=FLAGS.n_search))
    wanted = [name.strip() for name in FLAGS.methods] or list(plans)
    for name in wanted:
        if name not in (*plans, "naive"):
            raise UserError(f"--methods names {name!r}; there are naive, {', '.join(plans)}")
    return [plans[name] for name in wanted if name != "naive"]


def banks():
    """(name, bank) of every folder and every simulated world."""
    from lpe_jax.errors import UserError
    from lpe_jax.evaluation.worlds import FAMILIES, simulate
    from lpe_jax.records.bank import read_bank

    if not FLAGS.bank and not FLAGS.simulate:
        raise UserError("nothing to evaluate on; name a run folder with --bank or a world with --simulate")
    for family in FLAGS.simulate:
        if family not in FAMILIES:
            raise UserError(f"--simulate={family} is not one of {', '.join(FAMILIES)}")
    for folder in FLAGS.bank:
        bank = read_bank(Path(folder))
        names = [field.name for field in dataclasses.fields(bank) if field.name != "alpha"]
        first = {name: getattr(bank, name)[: FLAGS.limit or None] for name in names}
        yield Path(folder).name or folder, dataclasses.replace(bank, **first)
    for family in FLAGS.simulate:
        yield family, simulate(family, seed=FLAGS.seed, prompts=FLAGS.limit or 200, n=FLAGS.n)


def evaluate(bank, plans: list, labels: list[str], stem: str) -> list[dict]:
    """Rows of one bank; its figures are drawn."""
    from lpe_jax.estimation.lpe import LPE
    from lpe_jax.evaluation.comparison import compare
    from lpe_jax.evaluation.measures import naive_labels, truth_labels
    from lpe_jax.evaluation.trials import paths
    from lpe_jax.reporting.evaluation_figures import figure_one, figure_two

    told = [naive_labels(bank, FLAGS.seed) if label == "naive" else truth_labels(bank) for label in labels]
    settings = {name: FLAGS[name].value for name in ("repeats", "interval_repeats", "seed")}
    found = compare(bank, plans, told, **settings, tell=lambda method: print(f"{method} ...", flush=True))
    lpe = LPE(n_search=FLAGS.n_search, n_fit=max(numbers("n_fit", int, 1, 1e6)))
    panels = paths(bank, lpe, range(min(PANELS, len(bank.prompt_ids))), seed=FLAGS.seed)
    for kind in ("svg", "png"):
        for label, curves in found.curves.items():
            figure_one(curves, Path(FLAGS.out) / f"figure1{stem}{f'-{label}' * (label != labels[0])}.{kind}")
        figure_two(panels, Path(FLAGS.out) / f"figure2{stem}.{kind}")
    return found.rows


def main() -> None:
    from lpe_jax.errors import UserError

    drifts, labels = numbers("drift", float, 0, 1e3), list(dict.fromkeys(FLAGS.labels))
    if not labels or not set(labels) <= {"naive", "truth"}:
        raise UserError(f"--labels={','.join(FLAGS.labels)} must be naive, truth or both")
    if not FLAGS.out:
        raise UserError("--out is missing; name a folder to write to")
    plans, out = chosen_plans(), Path(FLAGS.out)

    from lpe_jax.evaluation.drift import add_drift
    from lpe_jax.records.files import write_json
    from lpe_jax.records.run import versions
    from lpe_jax.reporting.evaluation import evaluation_table, write_evaluation

    rows, seconds = [], {}
    for name, plain in banks():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={out} cannot be made: {error.strerror}") from None
        for drift in drifts:
            several = len(FLAGS.bank) + len(FLAGS.simulate) > 1, len(drifts) > 1
            stem = f"-{name}" * several[0] + f"-drift{drift:g}" * several[1]
            began = time.perf_counter()
            try:
                own = evaluate(add_drift(plain, drift, FLAGS.seed), plans, labels, stem)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None
            seconds[f"{name}, drift {drift:g}"] = round(time.perf_counter() - began, 2)
            own = [{"bank": name, "drift": drift, **row} for row in own]
            print(evaluation_table(own), flush=True)
            rows += own
            write_evaluation(rows, out / "evaluation.csv")
    settings = {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    write_json(out / "evaluation.json", {"settings": settings, "seconds": seconds, "versions": versions()})
    print(f"written to {out}")


if __name__ == "__main__":
    launch.run(main)
