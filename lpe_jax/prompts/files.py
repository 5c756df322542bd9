"""Text files with the line numbers an editor shows, for messages that point at a line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from lpe_jax.errors import PromptError

MAX_BYTES = 64 * 2**20
# Of one line, or of one row of a table over several. What is parsed of it takes up to thirty times as much.
MAX_ROW_CHARACTERS = 4 * 2**20


def read_text(path: Path) -> str:
    """The file's text without a byte order mark; line ends are left as they are."""
    try:
        if not path.is_file():
            raise PromptError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name a prompt file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise PromptError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; split it")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        nul = data.find(b"\0")
        if nul >= 0:
            raise PromptError(
                f"{path}, line {_line_of(data, nul)}: a NUL byte; save the file as UTF-8 text (is it UTF-16?)"
            )
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path}, line {_line_of(data, error.start)}: byte 0x{data[error.start]:02x} is not UTF-8; "
            f"save the file as UTF-8"
        ) from None


def _line_of(data: bytes, offset: int) -> int:
    return len(re.findall(rb"\r\n|\r|\n", data[:offset])) + 1


def lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Non-blank lines and their numbers. Only \\n, \\r\\n, \\r end a line: JSON strings may hold U+2028."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if len(line) > MAX_ROW_CHARACTERS:
            raise _too_long(path, number)
        if line.strip():
            yield number, line.removesuffix("\n")


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Non-blank rows with the physical line each begins on."""
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for part in io.StringIO(text, newline=""):
            taken += len(part)
            if taken > MAX_ROW_CHARACTERS:
                raise _too_long(path, line)
            yield part

    reader = csv.reader(counted(), strict=True)
    while True:
        line, taken = reader.line_num + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise PromptError(f"{path}, line {line}: the row that begins here is not CSV ({error})") from None
        if cells:
            yield line, cells


def _too_long(path: Path, line: int) -> PromptError:
    return PromptError(f"{path}, line {line}: more than {MAX_ROW_CHARACTERS} characters; is this a file of prompts?")
