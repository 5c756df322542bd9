"""The flags that programs share. One meaning each; docs/architecture.md explains the words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "original",
    None,
    "Model whose rare rate is asked for: local folder or hub id org/name[@revision]. Default: the embedded pair.",
)
flags.DEFINE_string(
    "variant", None, "Less safe variant of the original: a folder or hub id. Default: the embedded pair's."
)
flags.DEFINE_string(
    "prompts",
    None,
    "Prompt file: HarmBench or StrongREJECT CSV, JSONL of {id, messages}, or text with one prompt per line.",
)
flags.DEFINE_enum(
    "functional_category",
    "standard",
    ["standard", "contextual", "copyright", "all"],
    "Which rows of a HarmBench CSV.",
)
flags.DEFINE_integer(
    "limit",
    None,
    "Use the first so many prompts; 0 is all. Default: all; of the embedded pair's experiments.estimate takes 16.",
    lower_bound=0,
)
flags.DEFINE_string(
    "out", None, "Run folder. Default: runs/<program>-<hash of the settings>, so that the same command finds its run."
)
flags.DEFINE_integer("seed", 0, "Seed of every rollout.", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_boolean(
    "thinking", False, "Render prompts with the chat template's thinking mode; only text after </think> is judged."
)
flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Longest response in tokens. Default: 64 for the embedded pair, else 256, or 4096 with --thinking.",
    lower_bound=1,
)
flags.DEFINE_float("temperature", 1.0, "Sampling temperature, applied after mixing.", lower_bound=0.0)
flags.DEFINE_integer(
    "top_k",
    0,
    "Keep the k likeliest tokens after mixing; 0 is off. Importance weights then no longer apply.",
    lower_bound=0,
)
flags.DEFINE_float(
    "top_p",
    1.0,
    "Keep the likeliest tokens that reach this probability after mixing; 1 is off. Rates are then of the truncated "
    "sampler.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "batch_size", None, "Rows per compiled batch. Default: 256 for the embedded pair, else 64.", lower_bound=1
)
flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float32", "bfloat16", "float16"],
    "Weights and activations; auto is float32 on CPU and bfloat16 elsewhere.",
)
flags.DEFINE_integer(
    "model_parallel", 1, "Devices that share one copy of the models; the others take rows.", lower_bound=1
)
flags.DEFINE_enum(
    "pair_mode",
    "auto",
    ["auto", "copies", "shared", "ablated"],
    "What is kept once for both models. copies: nothing; shared: equal weights; ablated: all weights, where the "
    "variant is the original with low-rank edits; auto: ablated where that is exact up to rounding, else shared.",
)
flags.DEFINE_enum(
    "attention",
    "auto",
    ["auto", "einsum", "pallas"],
    "What computes attention. einsum: XLA's products, which read all slots of a response; pallas: a kernel for NVIDIA "
    "GPUs, which reads those that are used; auto: the kernel where it can be had. It changes rounding.",
)
flags.DEFINE_boolean(
    "sums",
    True,
    "Take of every rollout log p under both models and the path score. Without them one head is computed instead of "
    "two, quicker with a large vocabulary; --method=path needs them, and --method=lpe doubts its line by them.",
)
flags.DEFINE_integer(
    "verify",
    0,
    "Rollouts of each prompt whose log-probabilities and path scores are computed anew by a full forward pass; the run "
    "stops if they differ by more than rounding.",
    lower_bound=0,
)
flags.DEFINE_string(
    "weights_cache",
    None,
    "Folder where the pair is kept as it is used: the next start reads it there and checks every value. It trusts that "
    "files of weights with the same names, sizes, times and beginnings are the same. Changes no result. Default: none.",
)
flags.DEFINE_float(
    "grace",
    20.0,
    "Seconds after a SIGTERM, or a Ctrl-C, within which the run puts what it has on disk and ends, with exit status 75 "
    "or 130.",
    lower_bound=0.0,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, as the others reach it, where several processes share a run. With --num_processes and "
    "--process_id; every process is given the same command but for its --process_id, and one --out that all see.",
)
flags.DEFINE_integer(
    "num_processes", None, "Processes that share the run; each draws every so-many-th prompt.", lower_bound=1
)
flags.DEFINE_integer("process_id", None, "Which of --num_processes this one is, from 0.", lower_bound=0)
flags.DEFINE_boolean(
    "distributed",
    False,
    "Have JAX find --coordinator, --num_processes and --process_id by itself: on all hosts of a TPU pod, under Slurm, "
    "in Kubernetes.",
)
flags.DEFINE_float(
    "tokens_per_second",
    None,
    "With --dry_run: what all devices together draw, as measured. Default: as the run was drawn so far, if it was.",
    lower_bound=1e-3,
)
flags.DEFINE_string(
    "plan", None, "With --dry_run: a file that experiments.plan --json=FILE wrote, for the speed that it expects."
)
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")
TOPICS = {
    "models, prompts": ("original", "variant", "prompts", "functional_category", "limit", "thinking"),
    "rollouts": ("seed", "max_new_tokens", "temperature", "top_k", "top_p", "sums", "verify"),
    "the machine": ("batch_size", "dtype", "pair_mode", "attention", "model_parallel", "weights_cache"),
    "the run": ("out", "grace", "tokens_per_second", "plan"),
    "several processes": (*PROCESS_FLAGS, "distributed"),
}


# The fields of lpe_jax.asked.Asked that programs share: what decides a result, and what does not.
JOB_FLAGS = (
    *("original", "variant", "prompts", "functional_category", "limit", "judge", "thinking", "seed"),
    *("max_new_tokens", "temperature", "top_k", "top_p", "batch_size", "dtype", "model_parallel"),
    *("pair_mode", "attention", "sums"),
)
RUN_FLAGS = ("verify", "grace", "weights_cache")


def check() -> None:
    """What absl cannot check of a single flag.

    Raises:
      UserError: original and variant are not given together, or not with prompts; flags of processes do not fit.
    """
    from lpe_jax.errors import UserError

    if (FLAGS.original is None) != (FLAGS.variant is None):
        given, missing = ("original", "variant") if FLAGS.variant is None else ("variant", "original")
        raise UserError(f"--{given} is given without --{missing}; give both, or neither for the embedded pair")
    if FLAGS.original is not None and FLAGS.prompts is None:
        raise UserError("--prompts is missing; name a prompt file for these models")
    given = [name for name in PROCESS_FLAGS if FLAGS[name].value is not None]
    speeds = [name for name in ("tokens_per_second", "plan") if FLAGS[name].value is not None]
    if speeds and not FLAGS.dry_run:
        raise UserError(f"--{speeds[0]} goes with --dry_run; a run is as quick as it is")
    if len(speeds) == 2:
        raise UserError("--tokens_per_second and --plan say the same thing twice; give one of them")
    if given and FLAGS.distributed:
        raise UserError(f"--distributed finds what --{given[0]} says; give one of the two")
    if missing := [name for name in PROCESS_FLAGS if given and name not in given]:
        raise UserError(f"--{missing[0]} is missing; it goes with --{given[0]}")
    if given and FLAGS.process_id >= FLAGS.num_processes:
        raise UserError(f"--process_id={FLAGS.process_id} is not below --num_processes={FLAGS.num_processes}")
    if given and not re.fullmatch(r".+:\d{1,5}", FLAGS.coordinator):
        raise UserError(f"--coordinator={FLAGS.coordinator} must be HOST:PORT")


def speed():
    """What --dry_run is to reckon with, as lpe_jax.dry takes it; None where nothing was said.

    Raises:
      UserError: --plan names no plan, or one without a speed.
    """
    from pathlib import Path

    from lpe_jax.plan import speed_in
    from lpe_jax.reporting.bill import Pace

    if FLAGS.plan is not None:
        return speed_in(Path(FLAGS.plan))
    return None if FLAGS.tokens_per_second is None else Pace(FLAGS.tokens_per_second, "--tokens_per_second")


def processes():
    """The processes that share the run, found as the flags say; to be called before JAX touches a device.

    Raises:
      UserError: they do not find each other.
    """
    from lpe_jax.processes import join

    return join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, find=FLAGS.distributed)


def flag_values(names: Iterable[str]) -> dict[str, Any]:
    """Flags as parsed, for a run's record and its folder's name."""
    return {name: FLAGS[name].value for name in names}


def flagfile(names: Iterable[str]) -> str:
    """The text of a file for --flagfile that repeats this call."""
    lines = [FLAGS[name].serialize() for name in names if FLAGS[name].value is not None]
    return "".join(line + "\n" for line in lines if line)
