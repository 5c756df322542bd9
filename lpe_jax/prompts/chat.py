"""Chat rendering: a prompt's turns to the tokens the models read, and a response's tokens back to text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lpe_jax.errors import CheckpointError, PromptError
from lpe_jax.prompts import sandbox
from lpe_jax.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template is a program that came with the checkpoint; an honest one takes milliseconds.
RENDER_SECONDS = 20.0

# The parts of a tokenizer.json that decide which tokens a text becomes and which text tokens become. The
# post-processor is left out because prompts are encoded without it, truncation and padding because calling a
# tokenizer changes them.
_TOKENIZER_PARTS = ("normalizer", "pre_tokenizer", "model", "added_tokens", "decoder")

# The largest tokenizer.json of a known model has 33 MB.
MAX_FILE_BYTES = 64 * 2**20
_TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja", ".model")

# The largest vocabularies have a quarter million. The tokenizers library writes out every id below the highest.
_MOST_TOKENS = 1 << 22
# All checkpoints are of this architecture, as lpe_jax.models.config sees to.
_MODEL_TYPE = "qwen3"

T = TypeVar("T")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads a checkpoint folder's tokenizer, without network and without code from the folder.

    Raises:
      CheckpointError: not a folder, tokenizer files missing or unreadable, or no chat template.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; download the checkpoint first and name its folder")
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder}: no tokenizer.json (nor vocab.json with merges.txt); copy the tokenizer files of the "
            f"checkpoint into the folder"
        )
    for path in folder.iterdir():
        if path.suffix in _TOKENIZER_SUFFIXES and (not path.is_file() or path.stat().st_size > MAX_FILE_BYTES):
            raise CheckpointError(
                f"{path}: not a file, or larger than {MAX_FILE_BYTES // 2**20} MiB; no tokenizer has such a one"
            )
    # That PyTorch is missing is no news where it is not wanted.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoConfig, AutoTokenizer

    # By the model's config a tokenizer's class is chosen. The folder's own is not asked: transformers makes of it what
    # it asks for, such as names for 10^10 labels.
    config = AutoConfig.for_model(_MODEL_TYPE)
    try:
        with _panics_are_errors():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), config=config, local_files_only=True, trust_remote_code=False
            )
            parts = getattr(tokenizer, "backend_tokenizer", None)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded ({_first_line(error)})") from None
    if "auto_map" in tokenizer.init_kwargs:
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded, as it asks for code of its own (auto_map in "
            "tokenizer_config.json), which is not run"
        )
    if parts is None:
        raise CheckpointError(f"{folder}: the tokenizer has no tokenizer.json form; save it with transformers 5")
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        template = None
    if not isinstance(template, str):
        raise CheckpointError(f"{folder}: the tokenizer has no chat template; add the checkpoint's chat_template.jinja")
    if not tokenizer.get_vocab():
        raise CheckpointError(f"{folder}: the tokenizer has no tokens; copy the checkpoint's tokenizer files anew")
    if number_of_tokens(tokenizer) > _MOST_TOKENS:
        raise CheckpointError(
            f"{folder}: the tokenizer has a token of id {number_of_tokens(tokenizer) - 1}, beyond any vocabulary; copy "
            "the checkpoint's tokenizer files anew"
        )
    return tokenizer


def number_of_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids below it are tokens; where a vocabulary leaves none out, it is their number."""
    return max(tokenizer.get_vocab().values()) + 1


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, thinking: bool) -> list[int]:
    """The tokens the models read before the first response token, by the checkpoint's own chat template.

    thinking is handed to the template as enable_thinking, and a template without that switch ignores it. The
    template writes every special token itself, so none are added. As everywhere in transformers, a special
    token that is spelled out inside a turn becomes that token. The template has a process of its own, with limits to
    its time and memory; the tokenizer is held to the time only.

    Raises:
      PromptError: the template fails, writes nothing or takes longer than RENDER_SECONDS, or the tokenizer does.
    """
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    variables = {**tokenizer.special_tokens_map, "enable_thinking": thinking}
    try:
        text = sandbox.render(tokenizer.get_chat_template(), turns, variables, RENDER_SECONDS)
    except TimeoutError:
        raise PromptError(
            f"prompt {prompt.id!r}: the chat template did not finish within {RENDER_SECONDS:g} s"
        ) from None
    except sandbox.TemplateError as error:
        raise PromptError(f"prompt {prompt.id!r}: the chat template failed ({_printable(str(error))})") from None
    try:
        tokens = _within(RENDER_SECONDS, lambda: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    except TimeoutError:
        raise PromptError(f"prompt {prompt.id!r}: the tokenizer did not finish within {RENDER_SECONDS:g} s") from None
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PromptError(f"prompt {prompt.id!r}: the tokenizer failed ({_first_line(error)})") from None
    if not tokens:
        raise PromptError(f"prompt {prompt.id!r}: the chat template wrote no tokens")
    return [int(token) for token in tokens]


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], eos_ids: Collection[int]) -> str:
    """A response's text without end-of-sequence and other special tokens; tokens is [T].

    Qwen3's <think> and </think> are not special tokens and stay: lpe_jax.judging.text decides on them.

    Raises:
      CheckpointError: the tokenizer's files are such that it cannot.
    """
    kept = [int(token) for token in tokens if int(token) not in eos_ids]
    try:
        with _panics_are_errors():
            # The clean-up would delete spaces before punctuation, which the model did write.
            return tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer cannot turn tokens into text ({_first_line(error)})"
        ) from None


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides a prompt's tokens, as sha256 sums: for a run's identity.

    Returns:
      vocabulary: of the (id, token) pairs in order; tokenizer: of merges, normaliser, pre-tokenizer, added
      tokens and decoder; chat_template: of its text; length: the number of entries.
    """
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return {
        "vocabulary": _sha256(vocabulary),
        "tokenizer": _sha256(_parts(tokenizer)),
        "chat_template": _sha256(tokenizer.get_chat_template()),
        "length": len(tokenizer),
    }


def tokenizer_difference(original: PreTrainedTokenizerBase, variant: PreTrainedTokenizerBase) -> str | None:
    """One clause saying why the two would not read the same tokens, or None. Chat templates are not compared.

    A pair mixes logits token by token, so id i must mean the same token to both.
    """
    a, b = ({index: token for token, index in t.get_vocab().items()} for t in (original, variant))
    if a != b:
        first = min(index for index in a.keys() | b.keys() if a.get(index) != b.get(index))
        shown = [repr(side[first]) if first in side else "nothing" for side in (a, b)]
        return (
            f"the original's vocabulary has {len(a)} entries and the variant's {len(b)}; the first that "
            f"differs is id {first}, {shown[0]} in the original and {shown[1]} in the variant"
        )
    parts_a, parts_b = _parts(original), _parts(variant)
    differing = [name for name in _TOKENIZER_PARTS if parts_a[name] != parts_b[name]]
    if differing:
        names = ["model (merges)" if name == "model" else name for name in differing]
        return f"the vocabularies agree but the tokenizers differ in {', '.join(names)}"
    return None


def template_difference(original: PreTrainedTokenizerBase, variant: PreTrainedTokenizerBase) -> str | None:
    """One clause saying where the chat templates part, or None.

    Not a reason to refuse a pair, as the original's template is used for both, but worth a line: the variant
    may have been made for another prompt format.
    """
    a, b = (t.get_chat_template().splitlines() for t in (original, variant))
    if a == b:
        return None
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"the chat templates differ from line {same + 1} on; the original's is used for both"


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: state[name] for name in _TOKENIZER_PARTS}


@contextlib.contextmanager
def _panics_are_errors() -> Iterator[None]:
    """The tokenizers library is Rust; where that panics, what is raised is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise RuntimeError(str(error)) from None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """call() in a thread that is left behind, and dies with the process, when the time is over."""
    done: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            with _panics_are_errors():
                done.put((call(), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True, name="tokenizer").start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    """The error in one line; what a terminal would obey is masked, as templates and files word their errors."""
    text = _printable((str(error).strip().splitlines() or [""])[0][:200])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
