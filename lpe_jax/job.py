"""One estimation job from start to end: read, load, draw, judge, estimate, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from lpe_jax import live
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.errors import UserError
from lpe_jax.estimation.imputation import correct_estimate
from lpe_jax.estimation.judge_error import JudgeQuality
from lpe_jax.estimation.procedure import Procedure
from lpe_jax.estimation.unscored import lpe_extremes
from lpe_jax.judging.registry import make_judge
from lpe_jax.loading import Loaded, checkpoint_stamp, dtype_of, load, make_mesh
from lpe_jax.models.pair import describe_sharing
from lpe_jax.prompts import chat
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records.files import write_whole
from lpe_jax.records.ledger import Ledger
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.records.run import Run, check_folder, read_run, settings_hash
from lpe_jax.reporting import figures, table
from lpe_jax.together import estimate_together
from lpe_jax.types import Outcome, Prompt

# Of 200, in an order in which any first few span all rates.
EMBEDDED_LIMIT = 16
# The embedded pair's longest responses have about 60 tokens.
EMBEDDED_TOKENS = 64
# Reasoning that is cut off leaves nothing to judge.
THINKING_TOKENS = 4096
TABLE = "estimates.txt"


@dataclasses.dataclass(frozen=True)
class Job:
    """What an estimation program was asked for. None stands for the default that depends on the models."""

    program: str
    original: str | None
    variant: str | None
    prompts: str | None
    functional_category: str
    limit: int | None
    judge: str | None
    method: str
    procedure: Procedure
    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    thinking: bool
    seed: int
    batch_size: int | None
    dtype: str
    model_parallel: int
    judge_quality: JudgeQuality | None = None

    @property
    def embedded(self) -> bool:
        """Whether the embedded pair is meant."""
        return self.original is None


def run(job: Job, *, out: str | None, asked: Mapping[str, Any], flagfile: str, draw_figures: bool) -> Path:
    """Runs a job, or goes on with it, or says that it is finished. Returns the run folder.

    Everything cheap that can be wrong is looked at before the models are loaded, and nothing is written before
    everything has been.

    Args:
      asked: the flags as given; a finished run that was asked for with the same ones is left alone.
      flagfile: the same as a file for --flagfile.

    Raises:
      UserError: any input that cannot be used.
    """
    began = time.monotonic()
    sampling = _sampling(job)
    prompts = _prompts(job)
    judge = make_judge(job.judge or ("tiny" if job.embedded else "rules"))
    # The same command over edited prompts, another judge or changed checkpoint files is another job.
    stamps = [checkpoint_stamp(source) for source in _sources(job)]
    asked = {**asked, "judge_identity": judge.identity, "prompt_texts": _texts_hash(prompts), "checkpoints": stamps}
    asked = json.loads(json.dumps(asked))
    folder = Path(out or f"runs/{job.program}-{settings_hash(asked)}")
    record = read_run(folder)
    there = all((folder / name).is_file() for name in (TABLE, "estimates.csv"))
    if record is not None and record["status"] == "finished" and record.get("asked") == asked and there:
        print((folder / TABLE).read_text(encoding="utf-8"), end="")
        print(f"\n{folder} is finished: nothing to do. Another --seed or --out draws anew.")
        return folder

    check_folder(folder)
    mesh = make_mesh(job.model_parallel)
    batch_size = _batch_size(job, mesh)
    if dtype_of(job.dtype) == "float32":
        # Accelerators multiply float32 matrices in fewer bits unless told otherwise.
        jax.config.update("jax_default_matmul_precision", "highest")
    loaded = load(*_sources(job), dtype=job.dtype, mesh=mesh)
    rendered = {p.id: chat.render(loaded.tokenizer, p, thinking=job.thinking) for p in prompts}
    sampler = _sampler(job, loaded, rendered, sampling, batch_size, mesh)
    settings = _settings(job, loaded, sampler, judge.identity)

    resolved = {
        "dtype": loaded.identity["dtype"],
        "judge": job.judge or ("tiny" if job.embedded else "rules"),
        "limit": len(prompts),
        "max_new_tokens": sampling.max_new_tokens,
        "batch_size": batch_size,
    }
    # Later lines win: a default that depends on the models is written out, should it ever change.
    flagfile += "".join(f"--{name}={value}\n" for name, value in resolved.items())
    with Run(folder, settings, asked=asked, flags=flagfile) as opened:
        for note in (describe_sharing(loaded.pair), *loaded.notes, *_warnings(job, sampling)):
            print(note)
        print(f"{len(prompts)} prompts, method {job.method}, judge {judge.identity}; writing to {folder}\n", flush=True)
        results = _results(job, prompts, sampler, judge, opened, _truth(job, loaded))
        order = {prompt.id: i for i, prompt in enumerate(prompts)}
        results.sort(key=lambda result: order[result.prompt_id])
        text = table.terminal_table(results) + "\n"
        table.write_csv(table.estimates_rows(results), folder / "estimates.csv")
        write_whole(folder / TABLE, lambda p: p.write_text(text, encoding="utf-8"))
        print("\n" + text, end="")
        if draw_figures:
            _draw_figures(results, folder / "figures")
        opened.metric(event="finished", seconds=round(time.monotonic() - began, 1))
        opened.finish()
    print(f"\nfinished in {time.monotonic() - began:.0f} s; see {folder}")
    return folder


def _sampling(job: Job) -> SamplingSettings:
    longest = job.max_new_tokens or (EMBEDDED_TOKENS if job.embedded else THINKING_TOKENS if job.thinking else 256)
    try:
        return SamplingSettings(longest, job.temperature, job.top_k, job.top_p)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _prompts(job: Job) -> list[Prompt]:
    if job.prompts is not None:
        prompts = read_prompts(Path(job.prompts), functional_category=job.functional_category)
    else:
        from lpe_jax.tiny import world_folder

        prompts = read_prompts(world_folder() / "prompts.jsonl")
    limit = job.limit if job.limit is not None else (EMBEDDED_LIMIT if job.prompts is None else 0)
    return prompts[:limit] if limit else prompts


def _truth(job: Job, loaded: Loaded) -> dict[str, Any]:
    """The known rates of the embedded pair's own prompts; none if they were sampled from another pair, or otherwise."""
    from lpe_jax.tiny import world_folder
    from lpe_jax.tiny.truth import read_truth, truth_fits

    sampled_alike = (job.temperature, job.top_k, job.top_p, job.thinking) == (1.0, 0, 1.0, False)
    sampled_alike &= job.max_new_tokens in (None, EMBEDDED_TOKENS)
    own = job.embedded and job.prompts is None and job.judge in (None, "tiny")
    if not (own and sampled_alike and truth_fits(world_folder(), loaded.identity)):
        return {}
    return read_truth(world_folder())


def _texts_hash(prompts: Sequence[Prompt]) -> str:
    texts = [dataclasses.asdict(prompt) for prompt in prompts]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _sources(job: Job) -> tuple[str, str]:
    if not job.embedded:
        return job.original, job.variant
    from lpe_jax.tiny import world_folder

    return str(world_folder() / "original"), str(world_folder() / "variant")


def _batch_size(job: Job, mesh: Mesh | None) -> int:
    batch_size = job.batch_size or (256 if job.embedded else 64)
    if mesh is not None and batch_size % mesh.shape["data"]:
        raise UserError(
            f"--batch_size={batch_size} is not a multiple of the {mesh.shape['data']} devices that share it"
        )
    return batch_size


def _sampler(
    job: Job,
    loaded: Loaded,
    rendered: Mapping[str, Sequence[int]],
    sampling: SamplingSettings,
    batch_size: int,
    mesh: Mesh | None,
) -> Sampler:
    pair, tokenizer = loaded.pair, loaded.tokenizer
    return Sampler(
        pair=pair,
        prompts=rendered,
        to_text=lambda tokens: chat.decode_text(tokenizer, tokens, pair.eos_ids),
        settings=sampling,
        seed=job.seed,
        batch_size=batch_size,
        prompt_slots=slots_for(rendered, pair.config.max_position_embeddings, sampling.max_new_tokens),
        mesh=mesh,
    )


def _settings(job: Job, loaded: Loaded, sampler: Sampler, judge: str) -> dict[str, Any]:
    """Everything that can change a result, by content rather than by name."""
    prompts = {prompt_id: list(ids) for prompt_id, ids in sampler.prompts.items()}
    return {
        **loaded.identity,
        "prompts": hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest(),
        "method": job.method,
        "procedure": dataclasses.asdict(job.procedure),
        "sampling": dataclasses.asdict(sampler.settings),
        "seed": job.seed,
        "thinking": job.thinking,
        "judge": judge,
        **({} if job.judge_quality is None else {"judge_quality": dataclasses.asdict(job.judge_quality)}),
        "batch_size": sampler.batch_size,
        "prompt_slots": sampler.prompt_slots,
        "mesh": None if sampler.mesh is None else dict(sampler.mesh.shape),
        # Another compiler or chip rounds otherwise, and a draw on the edge then goes the other way.
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def _warnings(job: Job, sampling: SamplingSettings) -> list[str]:
    found = []
    if sampling.truncates:
        found.append("--top_k or --top_p truncates: importance weights of these rollouts mean nothing")
    if job.judge_quality is not None:
        found.append(table.floor_words(job.judge_quality))
    return found


def _results(job: Job, prompts: Sequence[Prompt], sampler: Sampler, judge, opened: Run, truth: Mapping[str, Any]):
    """Every prompt's result, printed as it comes; under the path method, estimated anew from all of them."""
    store = RolloutStore(opened.folder / "rollouts")
    if len(store):
        print(f"going on from {len(store)} rollouts already drawn")
    ledger = Ledger(opened.folder / "verdicts.sqlite")

    # On a terminal only; elsewhere the lines of finished prompts are the progress.
    bar = tqdm(unit=" rollouts", disable=None, leave=False)

    def on_batch(rollouts: int, tokens: int, seconds: float) -> None:
        bar.update(rollouts)
        opened.metric(event="batch", rollouts=rollouts, tokens=tokens, seconds=round(seconds, 3))

    try:
        judged = live.Judged(judge, ledger, job.thinking)
        found = []
        for finished in live.run(job.procedure, prompts, sampler, judged, store, on_batch):
            result = _result(job, finished, truth.get(finished.prompt.id))
            found.append((finished, result))
            with bar.external_write_mode(file=sys.stdout):
                print(table.prompt_line(result, len(found), len(prompts)), flush=True)
    finally:
        bar.close()
        store.flush()
        ledger.close()
    if job.method == "path":
        together = estimate_together([finished for finished, _ in found])
        return [dataclasses.replace(result, estimate=e) for (_, result), e in zip(found, together, strict=True)]
    return [result for _, result in found]


def _result(job: Job, finished: live.Finished, truth: Any | None) -> table.PromptResult:
    estimate, fit, search = finished.estimate, finished.fit, finished.search
    unscored, extremes = finished.outcomes[Outcome.UNSCORED], None
    if job.judge_quality is not None:
        estimate = correct_estimate(job.procedure, estimate, fit, search, job.judge_quality, job.seed)
    if unscored and search is not None:
        extremes = lpe_extremes(job.procedure, fit, search, unscored)
    return table.PromptResult(
        prompt_id=finished.prompt.id,
        category=finished.prompt.category,
        estimate=estimate,
        fit=fit,
        search=search,
        method=job.method,
        complied=finished.outcomes[Outcome.COMPLIED],
        refused=finished.outcomes[Outcome.REFUSED],
        unscored=unscored,
        unscored_extremes=extremes,
        corrected=job.judge_quality is not None,
        tokens=finished.tokens,
        truth=None if truth is None else (truth.log10_rate, truth.se_log10),
        threshold=getattr(job.procedure, "threshold", 0.5),
    )


def _draw_figures(results: Sequence[table.PromptResult], folder: Path) -> None:
    """Every figure as PNG and SVG."""
    folder.mkdir(exist_ok=True)
    for suffix in (".png", ".svg"):
        for result in results:
            figures.path_figure(result, figures.figure_file(result.prompt_id, folder, suffix))
        figures.overview_figure(results, folder / f"overview{suffix}")
