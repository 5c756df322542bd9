"""Rates read back from an estimates.csv."""

from __future__ import annotations

import csv
import io
import math
import os
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from lpe_jax.errors import RunError
from lpe_jax.records.files import read_plain

_MOST_BYTES = 1 << 30


def rows_of(data: bytes, path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a CSV file that has a header, whose bytes these are; none of an empty one.

    Raises:
      RunError: it is no such file.
    """
    try:
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as a CSV file: {error}") from None


def read_rows(path: str | os.PathLike, *names: str) -> list[dict[str, str]]:
    """One or more rows that have the named columns.

    Raises:
      RunError: the file cannot be read, has no rows or lacks a column.
    """
    try:
        rows = rows_of(read_plain(Path(path), _MOST_BYTES), path)
    except OSError as error:
        raise RunError(f"{path} cannot be read as a CSV file: {error}") from None
    if not rows:
        raise RunError(f"{path} has no rows")
    for name in names:
        if name not in rows[0]:
            raise RunError(f"{path} has no column {name!r}; it has {', '.join(filter(None, rows[0]))}")
    return rows


def read_log10(path: str | os.PathLike, *names: str, method: str | None = None) -> np.ndarray:
    """log10 of the named columns of shares, [columns, rows]; -inf for 0. Rows that lack one of them are left out.

    method: take this method's rows; needed where the file holds several, as a prompt would count twice.

    Raises:
      RunError: the file cannot be read, lacks a column or the method, or holds what is no share.
    """
    rows = read_rows(path, *names)
    methods = sorted({row.get("method") or "" for row in rows})
    if method is None and len(methods) > 1:
        raise RunError(f"{path} holds estimates by {', '.join(methods)}; name one")
    if method not in (None, *methods):
        raise RunError(f"{path} holds no estimates by {method}, but by {', '.join(methods)}")
    table = []
    for i, row in enumerate(rows, start=1):
        if method in (None, row.get("method")) and all(row[name] for name in names):
            try:
                values = [Decimal(row[name]) for name in names]
            except InvalidOperation:
                raise RunError(f"{path}, row {i}: {', '.join(names)} must be numbers") from None
            if not all(value.is_finite() and 0 <= value <= 1 for value in values):
                raise RunError(f"{path}, row {i}: {', '.join(names)} must lie between 0 and 1")
            # Decimals keep rates below 1e-308, which no float holds.
            table.append([float(value.log10()) if value else -math.inf for value in values])
    return np.array(table).reshape(-1, len(names)).T
