"""What every program that draws rollouts is asked for: models, prompts, judge and how to sample."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lpe_jax.decoding.attention import choose_kernel
from lpe_jax.decoding.path import SamplingSettings
from lpe_jax.decoding.sampler import Sampler, slots_for
from lpe_jax.errors import UserError
from lpe_jax.judging.cascade import AnyJudge
from lpe_jax.judging.desk import Desk
from lpe_jax.judging.registry import make_judge
from lpe_jax.judging.settings import JudgeSettings
from lpe_jax.loading import Loaded, checkpoint_stamp, load, make_mesh, split_cpu
from lpe_jax.models.weights import dtype_of
from lpe_jax.prompts import chat
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records.prompts import prompts_digest
from lpe_jax.tiny import world_folder
from lpe_jax.tiny.truth import Truth, read_truth, truth_fits, truth_sampling
from lpe_jax.types import Prompt

# The embedded worlds' longest responses have about 60 tokens.
EMBEDDED_TOKENS = 64
# Reasoning that is cut off leaves nothing to judge.
THINKING_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags that programs share, as given; None stands for the default that depends on the models.

    Attributes:
      attention: what computes it, as lpe_jax.decoding.sampler.Sampler takes it.
      sums: take of every rollout what needs both models' own logits.
      judge_settings: how a judge that is a model is asked.
      judge_reasoning: the judge reads reasoning too.
      grace: seconds after a SIGTERM or SIGINT within which a run is to be on disk.
      verify: rollouts of each prompt whose sums are computed anew by a full forward pass; it changes no result.
      weights_cache: where pairs are kept as they are used; it changes no result.
      world: folder of a tiny world in the place of both models; None with original None is the package's own.
    """

    original: str | None
    variant: str | None
    prompts: str | None
    functional_category: str
    limit: int | None
    judge: str | None
    thinking: bool
    seed: int
    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    batch_size: int | None
    dtype: str
    model_parallel: int
    pair_mode: str = "auto"
    attention: str = "auto"
    sums: bool = True
    judge_settings: JudgeSettings = dataclasses.field(default_factory=JudgeSettings)
    judge_reasoning: bool = False
    verify: int = 0
    grace: float = 20.0
    weights_cache: str | None = None
    world: str | None = None

    @property
    def folder(self) -> Path | None:
        """The tiny world's folder; None for other models."""
        if self.original is not None:
            return None
        return world_folder() if self.world is None else Path(self.world).expanduser()

    @property
    def sources(self) -> tuple[str, str]:
        """Original and variant as lpe_jax.loading.load takes them."""
        if self.folder is None:
            return self.original, self.variant
        return str(self.folder / "original"), str(self.folder / "variant")

    @property
    def judge_name(self) -> str:
        """The judge that is meant."""
        return self.judge or ("rules" if self.folder is None else "tiny")

    @property
    def rows(self) -> int:
        """Rows of one compiled batch."""
        return self.batch_size or (64 if self.folder is None else 256)

    @property
    def default_limit(self) -> int:
        """How many prompts are taken if none are named; 0 is all."""
        return 0

    def sampling(self) -> SamplingSettings:
        """The distribution that is drawn from.

        Raises:
          UserError: a setting is out of range.
        """
        default = EMBEDDED_TOKENS if self.folder is not None else THINKING_TOKENS if self.thinking else 256
        try:
            return SamplingSettings(self.max_new_tokens or default, self.temperature, self.top_k, self.top_p)
        except ValueError as error:
            raise UserError(f"--{error}") from None

    def read_prompts(self) -> list[Prompt]:
        """The prompts that are meant.

        Raises:
          PromptError: the file cannot be used.
        """
        path = Path(self.prompts) if self.prompts is not None else self.folder / "prompts.jsonl"
        limit = self.default_limit if self.limit is None else self.limit
        return read_prompts(path, functional_category=self.functional_category)[: limit or None]

    def mesh(self) -> Mesh | None:
        """The devices that share a batch; None for one.

        Raises:
          UserError: they cannot.
        """
        self._split_cpu()
        mesh = make_mesh(self.model_parallel)
        if mesh is not None and self.rows % mesh.shape["data"]:
            raise UserError(
                f"--batch_size={self.rows} is not a multiple of the {mesh.shape['data']} devices that share it"
            )
        return mesh

    def _split_cpu(self) -> None:
        if self.folder is not None and self.model_parallel == 1:
            split_cpu(self.rows)

    def load(self, mesh: Mesh | None = None) -> Loaded:
        """Loads the models; float32 then means float32 in every product of matrices.

        Raises:
          UserError: they cannot be loaded, or not together, weights_cache is no folder, or a kernel is asked for that
            cannot be had here.
        """
        # What cannot be had is to fail now; of the models' heads only the sampler knows.
        choose_kernel(self.attention, jax.local_devices()[0])
        if dtype_of(self.dtype) == "float32":
            # Accelerators multiply float32 matrices in fewer bits unless told otherwise.
            jax.config.update("jax_default_matmul_precision", "highest")
        return load(
            *self.sources, dtype=self.dtype, mesh=mesh, pair_mode=self.pair_mode, weights_cache=self.weights_cache
        )

    def truth(self, loaded: Loaded) -> dict[str, Truth]:
        """True rates by prompt id, where a tiny world's own prompts are sampled and judged as its truth was."""
        own = self.folder is not None and self.prompts is None and self.judge_name == "tiny" and not self.thinking
        sampling = self.sampling()
        if not own or sampling.truncates or not truth_fits(self.folder, loaded.identity):
            return {}
        alike = truth_sampling(self.folder) == (sampling.temperature, sampling.max_new_tokens)
        return read_truth(self.folder) if alike else {}

    def make_judge(self, processes: int = 1) -> AnyJudge:
        """The judge that is meant; processes share its budget.

        Raises:
          JudgeError: there is none such.
        """
        # A judge that runs on the device is the first to use JAX, and then it is too late.
        self._split_cpu()
        return make_judge(self.judge_name, self.judge_settings.shared(processes))

    def desk(self, judge: AnyJudge) -> Desk:
        """Where responses are judged."""
        return Desk(judge, thinking=self.thinking, reasoning=self.judge_reasoning, again=self.judge_settings.again)

    def complete(self, flags: Mapping[str, Any], prompts: Sequence[Prompt], judge: AnyJudge) -> dict[str, Any]:
        """The flags with what they name: the same command over edited prompts, another judge or changed checkpoint
        files is another job. Plain JSON values, so that they compare with those of a run's record.
        """
        named = {
            "judge_identity": judge.identity,
            "prompt_texts": prompts_digest(prompts),
            "checkpoints": [checkpoint_stamp(source) for source in self.sources],
        }
        return json.loads(json.dumps({**flags, **named}))

    def settings(self, loaded: Loaded, judge: AnyJudge, mesh: Mesh | None) -> dict[str, Any]:
        """What decides rollouts and verdicts in any program, by content rather than by name."""
        on_cpu = jax.default_backend() == "cpu"
        return {
            **loaded.identity,
            "sampling": dataclasses.asdict(self.sampling()),
            "seed": self.seed,
            "thinking": self.thinking,
            "sums": self.sums,
            "judge": judge.identity,
            "judge_reasoning": self.judge_reasoning,
            "batch_size": self.rows,
            # How many cores share the rows changes rounding at most, and a run may go on on another machine.
            "mesh": None if mesh is None or (on_cpu and mesh.shape["model"] == 1) else dict(mesh.shape),
            # Another compiler or chip rounds otherwise, and a draw on the edge then goes the other way.
            "device": jax.local_devices()[0].device_kind,
            "jax": jax.__version__,
        }

    def extent(
        self, prompts: Sequence[Prompt], rendered: Mapping[str, Sequence[int]], sampler: Sampler
    ) -> dict[str, Any]:
        """What may grow from one call to the next with the rollouts of the former still being those of the latter.

        With room for a longer prompt another program is compiled, which may round otherwise; what is stored stays.
        """
        # By all that a prompt is: a judge may read its category.
        all_of = {p.id: json.dumps([dataclasses.asdict(p), list(rendered[p.id])]) for p in prompts}
        digests = {i: hashlib.sha256(text.encode()).hexdigest()[:16] for i, text in all_of.items()}
        return {"prompts": digests, "prompt_slots": sampler.prompt_slots}

    def render(self, loaded: Loaded, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
        """Token ids of every prompt, by its id."""
        return {p.id: chat.render(loaded.tokenizer, p, thinking=self.thinking) for p in prompts}

    def sampler(
        self,
        loaded: Loaded,
        rendered: Mapping[str, Sequence[int]],
        mesh: Mesh | None,
        grid: tuple[float, ...] | None = None,
    ) -> Sampler:
        """Draws rows of the prompts, with their log p at every alpha of the grid if one is given.

        Raises:
          PromptError: a prompt is empty or too long.
          UserError: what is drawn could not be verified.
        """
        settings = self.sampling()
        if self.verify and settings.truncates and loaded.pair.dtype != "float32":
            raise UserError(
                f"--verify with --top_k or --top_p takes --dtype=float32: in {loaded.pair.dtype.name} rounding decides "
                "which tokens are cut away"
            )
        return Sampler(
            pair=loaded.pair,
            prompts=rendered,
            to_text=loaded.text,
            settings=settings,
            seed=self.seed,
            batch_size=self.rows,
            prompt_slots=slots_for(rendered, loaded.pair.config.max_position_embeddings, settings.max_new_tokens),
            mesh=mesh,
            grid=grid,
            sums=self.sums,
            attention=self.attention,
        )
