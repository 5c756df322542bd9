"""Logs of Inspect (inspect_ai): a run written as one, and trials of any task read from others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpe_jax.errors import RunError
from lpe_jax.records.run import settings_hash
from lpe_jax.trials import Cell, added
from lpe_jax.types import Outcome
from lpe_jax.version import __version__

if TYPE_CHECKING:
    from lpe_jax.export import Exported

ENDINGS = (".eval", ".json")
SCORER = "judge"
# In a log's metadata, what all rollouts of a run came to.
TOTALS = "totals"
ABOUT = (
    "These are rollouts of a logit path, drawn at many alphas; only alpha = 1 is the original model. The log holds "
    "{held} of {total}: all that complied or some, and a random sample of the others. Shares among its samples are no "
    "rates: metadata.totals has the true counts by prompt and alpha, metadata.estimates the rates."
)
_FINISH = {"stop": "stop", "length": "max_tokens"}


def writer() -> Callable[[Exported, Path], None]:
    """What writes a run as a log.

    Raises:
      RunError: inspect_ai is not installed.
    """
    _imported()
    return write


def write(exported: Exported, path: Path) -> None:
    """A log with a sample for each rollout that is exported.

    Scores are "C" where it complied, "I" where it was refused and NaN, Inspect's mark of a score that was not to be
    had, where it went unscored.
    """
    inspect_ai = _imported()
    log, record = inspect_ai.log, exported.stored.record
    samples = [_sample(*judged) for judged in exported.rollouts()]
    model = str(record["asked"].get("original") or "embedded")
    scored = sum(sample.scores[SCORER].value in ("C", "I") for sample in samples)
    told = log.EvalResults(
        total_samples=len(samples),
        completed_samples=len(samples),
        # Without metrics: an accuracy of a sample that prefers hits would be taken for a rate.
        scores=[
            log.EvalScore(
                name=SCORER, scorer=SCORER, scored_samples=scored, unscored_samples=len(samples) - scored, metrics={}
            )
        ],
    )
    name = settings_hash(dict(exported.stored.settings))
    spec = log.EvalSpec(
        eval_id=hashlib.sha256(f"{name} {[s.id for s in samples]}".encode()).hexdigest()[:22],
        run_id=name,
        created=record["started"],
        task="lpe_jax",
        task_id=name,
        task_display_name="rollouts of a logit path",
        task_description=ABOUT.format(held=f"{len(samples):,}", total=f"{exported.total:,}"),
        task_args={"original": model, "variant": str(record["asked"].get("variant") or "embedded")},
        dataset=log.EvalDataset(name="prompts", samples=len(samples), sample_ids=[sample.id for sample in samples]),
        model=model,
        config=log.EvalConfig(epochs=1),
        packages={"lpe_jax": __version__},
        metadata={
            "about": ABOUT.format(held=f"{len(samples):,}", total=f"{exported.total:,}"),
            "judge": exported.stored.settings["judge"],
            "status": record["status"],
            TOTALS: {
                prompt_id: {repr(alpha): {str(o): n for o, n in said.items()} for alpha, said in own.items()}
                for prompt_id, own in exported.totals.items()
            },
            "estimates": exported.estimates(),
        },
    )
    stats = log.EvalStats(started_at=record["started"], completed_at=record.get("finished", ""))
    with _quiet():
        log.write_eval_log(
            log.EvalLog(status="success", eval=spec, results=told, stats=stats, samples=samples), path, format="eval"
        )


def _sample(prompt, rollout, verdict):
    inspect_ai = _imported()
    model, score = inspect_ai.model, inspect_ai.scorer.Score
    kinds = {
        "system": model.ChatMessageSystem,
        "user": model.ChatMessageUser,
        "assistant": model.ChatMessageAssistant,
    }
    asked = [kinds[m.role](content=m.content) for m in prompt.messages]
    answer = model.ChatMessageAssistant(content=rollout.text, source="generate")
    sums = ("logp_path", "logp_original", "logp_variant", "path_score", "path_variance")
    reason, fields = verdict.fields.get("reason"), json.loads(json.dumps(dict(verdict.fields), default=str))
    about = {
        "explanation": None if reason is None else str(reason),
        "metadata": {"outcome": str(verdict.outcome), **fields},
    }
    if verdict.outcome is Outcome.UNSCORED:
        told = score.unscored(reason="grader_failed", **about)
    else:
        told = score(value="C" if verdict.outcome is Outcome.COMPLIED else "I", **about)
    return inspect_ai.log.EvalSample(
        id=f"{rollout.prompt_id} alpha={rollout.alpha!r} {rollout.index}",
        epoch=1,
        input=asked,
        target="",
        messages=[*asked, answer],
        output=model.ModelOutput(
            model="path",
            choices=[model.ChatCompletionChoice(message=answer, stop_reason=_FINISH.get(rollout.finish, "unknown"))],
        ),
        scores={SCORER: told},
        metadata={
            "prompt_id": rollout.prompt_id,
            "alpha": rollout.alpha,
            "index": rollout.index,
            "category": prompt.category,
            "tokens": len(rollout.tokens),
            # JSON has no NaN.
            **{name: value if math.isfinite(value := float(getattr(rollout, name))) else None for name in sums},
        },
    )


def read(
    paths: Sequence[Path], *, alpha: str, score: str | None = None, success: str = "C", unfinished: bool = False
) -> dict[str, dict[float, Cell]]:
    """Trials of logs of any task: every sample, in every epoch, is a trial of the prompt that has its id.

    A sample without a score, with NaN for one or that ended in an error is unscored. "N", by which Inspect means no
    answer, is a score and no success. Of a log that `write` made the totals in its metadata count, not its samples.

    Args:
      alpha: where a log says its alpha: a path into what it says of its evaluation, as "task_args.alpha",
        "model_args.alpha" or "metadata.alpha"; or "sample.NAME", of each sample's own metadata.
      score: which scorer, where there are several; "NAME.KEY" of one whose values are mappings.
      success: the value that counts as success, or "<x", "<=x", ">x", ">=x" with a number.
      unfinished: take logs of evaluations that did not end well too.

    Raises:
      RunError: a log cannot be read, has no such alpha or score, is not finished, or is given twice.
    """
    log, passes = _imported().log, _passes(success)
    seen: dict[str, Path] = {}
    parts = []
    for path in paths:
        try:
            with _quiet():
                header = log.read_eval_log(str(path), header_only=True)
                samples = log.read_eval_log_sample_summaries(str(path))
        except Exception as error:  # whatever zip, JSON, pydantic or the file system say
            said = str(error).strip().splitlines()
            raise RunError(
                f"{path} cannot be read as a log of Inspect: {said[0] if said else type(error).__name__}"
            ) from None
        if (before := seen.setdefault(header.eval.eval_id, path)) is not path:
            raise RunError(f"{path} is the evaluation that {before} is; its trials would count twice")
        own = (header.eval.metadata or {}).get(TOTALS) if header.eval.task == "lpe_jax" else None
        if own is not None:
            parts.append(_totals(path, own))
            continue
        if not unfinished and (header.status != "success" or header.invalidated):
            how = "was invalidated" if header.invalidated else f"ended as {header.status!r}"
            raise RunError(f"{path} {how}, and what is missing may not be missing by chance; --unfinished takes it")
        parts += _trials(path, header.eval.model_dump(), samples, alpha, score, passes)
    return added(parts)


def _trials(path, spec: Mapping[str, Any], samples, alpha: str, score: str | None, passes) -> Iterator[dict]:
    root, _, rest = alpha.partition(".")
    for sample in samples:
        where = sample.metadata if root == "sample" else spec
        at = _number(path, alpha, _at(where, rest if root == "sample" else alpha))
        scores, value = sample.scores or {}, None
        if scores and sample.error is None:
            value = _value(path, scores, score)
        unscored = value is None or (isinstance(value, float) and math.isnan(value))
        passed = not unscored and passes(value)
        yield {str(sample.id): {at: Cell(int(passed), int(not passed and not unscored), int(unscored))}}


def _at(values: Any, path: str) -> Any:
    """What stands at a path of keys; keys may have dots in them."""
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        for key, value in values.items():
            if path.startswith(f"{key}.") and (found := _at(value, path[len(str(key)) + 1 :])) is not None:
                return found
    return None


def _number(path: Path, field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        found = "is not there" if value is None else f"is {value!r} and no number"
        raise RunError(
            f"{path}: --alpha_field={field} {found}; name where alpha stands, as task_args.alpha, model_args.alpha, "
            "metadata.alpha, or sample.alpha for each sample's own metadata"
        )
    return number


def _value(path: Path, scores: Mapping[str, Any], name: str | None) -> Any:
    """A sample's value of the score that is meant."""
    if name is None and len(scores) > 1:
        raise RunError(f"{path} has the scores {', '.join(scores)}; name one with --score")
    scorer = next(iter(scores)) if name is None else name
    key = None
    if scorer not in scores:
        scorer, _, key = scorer.rpartition(".")
    if scorer not in scores:
        raise RunError(f"{path} has no --score={name}; it has {', '.join(scores)}")
    value = scores[scorer].value
    if key is None:
        if isinstance(value, Mapping):
            raise RunError(f"{path}: values of {scorer} are mappings; name one as --score={scorer}.{next(iter(value))}")
        return value
    if not isinstance(value, Mapping):
        # NaN in the place of a mapping is a score that was not to be had.
        return value if isinstance(value, float) and math.isnan(value) else _no_key(path, scorer, key, "no mapping")
    return value[key] if key in value else _no_key(path, scorer, key, f"it has {', '.join(value)}")


def _no_key(path: Path, scorer: str, key: str, has: str) -> Any:
    raise RunError(f"{path}: a value of {scorer} has no {key!r}: {has}")


def _passes(success: str) -> Callable[[Any], bool]:
    """What tells whether a value is a success.

    Raises:
      RunError: it compares with what is no number.
    """
    for sign, compare in (
        ("<=", lambda a, b: a <= b), (">=", lambda a, b: a >= b), ("<", lambda a, b: a < b), (">", lambda a, b: a > b)
    ):  # fmt: skip
        if success.startswith(sign):
            try:
                limit = float(success[len(sign) :])
            except ValueError:
                raise RunError(f"--success={success} must be a value, or {sign} and a number") from None
            return lambda value: _is_number(value) and compare(float(value), limit)
    try:
        number = float(success)
    except ValueError:
        words = {"true": True, "false": False}
        same = words.get(success.lower())
        return lambda value: str(value) == success or (same is not None and value is same)
    return lambda value: str(value) == success or (_is_number(value) and float(value) == number)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _totals(path: Path, totals: Any) -> dict[str, dict[float, Cell]]:
    names = tuple(str(outcome) for outcome in Outcome)
    try:
        return {
            prompt_id: {float(alpha): Cell(*(int(said[name]) for name in names)) for alpha, said in own.items()}
            for prompt_id, own in totals.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError(f"{path}: its metadata's {TOTALS} are not as lpe_jax writes them") from None


def _imported() -> Any:
    try:
        with _quiet():
            import inspect_ai.log
            import inspect_ai.model
            import inspect_ai.scorer
    except ImportError as error:
        raise RunError(
            f"logs of Inspect take the package inspect_ai: pip install 'lpe_jax[inspect]' ({error})"
        ) from None
    return inspect_ai


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What its own parts have to say of each other is nothing to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
