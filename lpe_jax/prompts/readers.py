"""Prompt files: HarmBench CSV, StrongREJECT CSV, JSONL and plain text, read strictly.

A prompt that is lost or cut changes what a run measures, so nothing is dropped in silence: the first row that
cannot be used raises a PromptError that names file, line (as an editor counts them) and column. The one
exception is a row that says nothing: blank lines are skipped in every format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lpe_jax.errors import PromptError
from lpe_jax.prompts.files import csv_rows, lines, read_text
from lpe_jax.types import Message, Prompt

FUNCTIONAL_CATEGORIES = ("standard", "contextual", "copyright")

MAX_CHARACTERS = 131_072  # one turn, or one CSV cell: the csv module's own default
MAX_ID_CHARACTERS = 256
MAX_PROMPTS = 1_000_000

_HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID")
_STRONGREJECT = ("category", "forbidden_prompt")
_ROLES = ("system", "user", "assistant")


def read_prompts(path: Path, *, functional_category: str = "standard") -> list[Prompt]:
    """Reads a prompt file; the format follows from the extension and, for CSV, from the header.

    .csv with Behavior, FunctionalCategory, SemanticCategory, ContextString, BehaviorID (HarmBench; Tags is
      not read): id = BehaviorID, category = SemanticCategory. Only rows of functional_category are returned,
      but every row is checked. A row with a context asks "{context}\\n\\n---\\n\\n{behavior}", as HarmBench's
      DirectRequest does.
    .csv with category, forbidden_prompt (StrongREJECT; source is not read): ids strongreject-0001, … by row.
    .jsonl with {"id", "messages": [{"role", "content"}, …]}, or {"id", "prompt"} for one user turn;
      "category" is optional, other keys are taken for notes and ignored. Histories may have several turns,
      the last of which is the user's; a system turn comes first.
    .txt with one prompt a line; ids line-0001, … are the line's number in the file.

    UTF-8, with or without a byte order mark. Text is kept as it stands: no stripping, no normalisation.

    Args:
      path: the file.
      functional_category: "standard", "contextual", "copyright" or "all"; chooses among HarmBench's rows.

    Raises:
      PromptError: the file or a row cannot be used, two rows share an id, or no prompt is left.
    """
    path = Path(path)
    if functional_category not in (*FUNCTIONAL_CATEGORIES, "all"):
        known = ", ".join((*FUNCTIONAL_CATEGORIES, "all"))
        raise PromptError(f"functional_category is {functional_category!r}, must be one of {known}")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".txt"):
        raise PromptError(f"{path}: the name must end in .csv, .jsonl or .txt, which tells the format")
    text = read_text(path)
    if suffix == ".csv":
        rows = _read_csv(path, text, functional_category)
    else:
        _refuse_category(path, functional_category)
        rows = _read_jsonl(path, text) if suffix == ".jsonl" else _read_txt(path, text)
    prompts = []
    line_of: dict[str, int] = {}
    for line, prompt, wanted in rows:
        _check_prompt(f"{path}, line {line}", prompt)
        if prompt.id in line_of:
            raise PromptError(
                f"{path}, line {line}: id {prompt.id!r} is already used on line {line_of[prompt.id]}; ids must differ"
            )
        line_of[prompt.id] = line
        if len(line_of) > MAX_PROMPTS:
            raise PromptError(f"{path}, line {line}: more than {MAX_PROMPTS} prompts; split the file")
        if wanted:
            prompts.append(prompt)
    if not line_of:
        raise PromptError(f"{path}: no prompts in this file")
    if not prompts:
        raise PromptError(
            f"{path}: none of its {len(line_of)} rows has FunctionalCategory {functional_category!r}; "
            f"choose another functional_category"
        )
    return prompts


# A reader yields (line the row begins on, prompt, whether it was asked for).
_Rows = Iterator[tuple[int, Prompt, bool]]


def _read_csv(path: Path, text: str, functional_category: str) -> _Rows:
    rows = csv_rows(path, text)
    header_line, header = next(rows, (1, []))
    columns = _listed(header)
    repeated = {name for name, count in Counter(header).items() if count > 1}
    if repeated:
        raise PromptError(f"{path}, line {header_line}: column {_shown(min(repeated))} appears more than once")
    if "forbidden_prompt" in header:
        wanted_columns = _STRONGREJECT
        _refuse_category(path, functional_category)
    elif set(header) & {"Behavior", "BehaviorID", "FunctionalCategory"}:
        wanted_columns = _HARMBENCH
    else:
        raise PromptError(
            f"{path}, line {header_line}: the header is neither HarmBench's ({', '.join(_HARMBENCH)}) nor "
            f"StrongREJECT's ({', '.join(_STRONGREJECT)}); columns found: {columns}"
        )
    missing = [name for name in wanted_columns if name not in header]
    if missing:
        raise PromptError(f"{path}, line {header_line}: column {missing[0]!r} is missing; columns found: {columns}")
    number = 0
    for line, cells in rows:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise PromptError(f"{where}: {len(cells)} cells under a header of {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        number += 1
        if wanted_columns is _STRONGREJECT:
            yield line, _strongreject_prompt(where, row, number), True
        else:
            wanted = functional_category in (row["FunctionalCategory"], "all")
            yield line, _harmbench_prompt(where, row), wanted


def _harmbench_prompt(where: str, row: dict[str, str]) -> Prompt:
    kind = row["FunctionalCategory"]
    if kind not in FUNCTIONAL_CATEGORIES:
        raise PromptError(
            f"{where}, column 'FunctionalCategory': {_shown(kind)} is none of {', '.join(FUNCTIONAL_CATEGORIES)}"
        )
    for column in ("Behavior", "SemanticCategory", "BehaviorID"):
        _filled(where, column, row[column])
    if kind == "contextual":
        _filled(where, "ContextString", row["ContextString"])
    context, behavior = row["ContextString"], row["Behavior"]
    asked = f"{context}\n\n---\n\n{behavior}" if context else behavior
    return Prompt(row["BehaviorID"], (Message("user", asked),), row["SemanticCategory"])


def _strongreject_prompt(where: str, row: dict[str, str], number: int) -> Prompt:
    for column in _STRONGREJECT:
        _filled(where, column, row[column])
    return Prompt(f"strongreject-{number:04}", (Message("user", row["forbidden_prompt"]),), row["category"])


def _read_jsonl(path: Path, text: str) -> _Rows:
    for line, record in lines(path, text):
        where = f"{path}, line {line}"
        try:
            value = json.loads(record, object_pairs_hook=_no_repeated_keys)
        except RecursionError:
            raise PromptError(f"{where}: the JSON is nested too deeply") from None
        except json.JSONDecodeError as error:
            raise PromptError(f"{where}, character {error.colno}: not JSON ({error.msg})") from None
        except ValueError as error:
            raise PromptError(f"{where}: not usable JSON ({error})") from None
        yield line, _json_prompt(where, value), True


def _json_prompt(where: str, value: Any) -> Prompt:
    if not isinstance(value, dict):
        raise PromptError(f'{where}: a JSON object with "id" and "messages" is wanted, found {_kind(value)}')
    if ("messages" in value) == ("prompt" in value):
        has = "both" if "messages" in value else "neither"
        raise PromptError(f'{where}: exactly one of "messages" and "prompt" is wanted, found {has}')
    if "id" not in value:
        raise PromptError(f'{where}: key "id" is missing; keys found: {_listed(value)}')
    identifier = _string(where, "id", value["id"])
    category = _string(where, "category", value.get("category", ""))
    if "prompt" in value:
        return Prompt(identifier, (Message("user", _string(where, "prompt", value["prompt"])),), category)
    turns = value["messages"]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else _kind(turns)
        raise PromptError(f'{where}, column "messages": a list of turns is wanted, found {found}')
    messages = tuple(_json_message(where, f"messages[{i}]", turn) for i, turn in enumerate(turns))
    if messages[-1].role != "user":
        raise PromptError(f'{where}, column "messages": the last turn must be the user\'s, found {messages[-1].role!r}')
    if any(message.role == "system" for message in messages[1:]):
        raise PromptError(f'{where}, column "messages": a system turn can only come first')
    return Prompt(identifier, messages, category)


def _json_message(where: str, name: str, turn: Any) -> Message:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        found = f"keys {_listed(turn)}" if isinstance(turn, dict) else _kind(turn)
        raise PromptError(f'{where}, column "{name}": exactly "role" and "content" are wanted, found {found}')
    role = _string(where, f"{name}.role", turn["role"])
    if role not in _ROLES:
        raise PromptError(f'{where}, column "{name}.role": {_shown(role)} is none of {", ".join(_ROLES)}')
    return Message(role, _string(where, f"{name}.content", turn["content"]))


def _read_txt(path: Path, text: str) -> _Rows:
    for line, prompt in lines(path, text):
        yield line, Prompt(f"line-{line:04}", (Message("user", prompt),)), True


def _check_prompt(where: str, prompt: Prompt) -> None:
    """What every format must hold to: ids and categories are printed, contents are tokenized and stored."""
    name = prompt.id
    if not (name == name.strip() and 0 < len(name) <= MAX_ID_CHARACTERS and name.isprintable()):
        raise PromptError(
            f"{where}: id {_shown(name)} must be 1 to {MAX_ID_CHARACTERS} printable characters "
            f"without spaces around them"
        )
    if not prompt.category.isprintable():
        raise PromptError(f"{where}: category {_shown(prompt.category)} holds characters that cannot be printed")
    for message in prompt.messages:
        _filled(where, f"{message.role} turn", message.content)
        if len(message.content) > MAX_CHARACTERS:
            raise PromptError(
                f"{where}: a turn of {len(message.content)} characters; at most {MAX_CHARACTERS} are allowed"
            )
        # JSON's \u escapes can spell both although the file's bytes hold neither.
        if "\0" in message.content or re.search("[\ud800-\udfff]", message.content):
            raise PromptError(f"{where}: a turn holds a NUL or half of a surrogate pair, which is not text")


def _refuse_category(path: Path, functional_category: str) -> None:
    if functional_category not in ("standard", "all"):
        raise PromptError(
            f"{path}: functional_category {functional_category!r} chooses among HarmBench rows; this "
            f"file has another format"
        )


def _no_repeated_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {_shown(key)} appears twice in one object")
        result[key] = value
    return result


def _filled(where: str, column: str, cell: str) -> None:
    if not cell.strip():
        raise PromptError(f"{where}, column {column!r}: empty")


def _string(where: str, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PromptError(f'{where}, column "{column}": a string is wanted, found {_kind(value)}')
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(text: str) -> str:
    """repr, which escapes what a terminal would obey, cut to what a sentence can hold."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _listed(names: Iterable[str]) -> str:
    listed = ", ".join(map(_shown, islice(names, 100))) or "none"
    return listed if len(listed) <= 400 else listed[:400] + "…"
