"""The prompts of a run, kept beside its rollouts: what was asked, for whoever judges or reads them later."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from lpe_jax.errors import RunError
from lpe_jax.records.files import CURE, read_bytes, write_whole
from lpe_jax.types import Message, Prompt

NAME = "prompts.jsonl"


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 of all that a prompt is, in order."""
    return hashlib.sha256(json.dumps([dataclasses.asdict(prompt) for prompt in prompts]).encode()).hexdigest()


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Puts them in a run folder, whole or not at all."""
    write_whole(folder / NAME, "".join(json.dumps(dataclasses.asdict(prompt)) + "\n" for prompt in prompts))


def ids_in(folder: Path) -> set[str]:
    """The ids of whatever prompts are there, right or not; none where there is no telling."""
    try:
        return {json.loads(line)["id"] for line in (read_bytes(folder / NAME, None) or b"").splitlines()}
    except (ValueError, KeyError, TypeError):
        return set()


def read_prompts(folder: Path, expected: str) -> list[Prompt]:
    """The prompts of a run folder.

    Args:
      expected: their digest, as the run's record has it.

    Raises:
      RunError: they are not there, or are not those.
    """
    path = folder / NAME
    data = read_bytes(path, None)
    if data is None:
        raise RunError(f"{path} is missing; the folder does not say what was asked")
    try:
        rows = [json.loads(line) for line in data.splitlines()]
        prompts = [Prompt(row["id"], tuple(Message(**m) for m in row["messages"]), row["category"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{path} is damaged; {CURE}") from None
    if prompts_digest(prompts) != expected:
        raise RunError(f"{path} is damaged: these are not the prompts that run.json tells of; {CURE}")
    return prompts
