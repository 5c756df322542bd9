"""How results are put in words and characters: rates, notes, and text that is safe to print or to put in a file."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata


def format_rate(log10_rate: float, digits: int = 2) -> str:
    """A rate from its log10, as "3.1e-05": exact in the exponent however small the rate, "0" at -inf."""
    if math.isnan(log10_rate):
        return "unknown"
    if log10_rate == -math.inf:
        return "0"
    exponent = math.floor(log10_rate)
    mantissa = f"{10 ** (log10_rate - exponent):.{digits - 1}f}"
    if mantissa.startswith("10"):
        exponent, mantissa = exponent + 1, f"{1:.{digits - 1}f}"
    return "1" if exponent == 0 else f"{mantissa}e{exponent:+03d}"


def superscript(exponent: int) -> str:
    """10 to a power, in characters."""
    if exponent == 0:
        return "1"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def format_interval(log10_rate: float, low: float, high: float) -> str:
    """ "3.1e-05 [2.0e-06, 4.0e-04]", or "≤ 3.0e-05" where nothing complied and only the upper end is known."""
    if log10_rate == -math.inf:
        return f"≤ {format_rate(high)}"
    return f"{format_rate(log10_rate)} [{format_rate(low)}, {format_rate(high)}]"


def printable(text: str) -> str:
    """The text on one line, with control, direction and other invisible characters escaped as \\x1b or \\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(data: bytes) -> str:
    """A text file's lines, each as printable has it, so that a terminal obeys nothing of a file from elsewhere."""
    return "\n".join(map(printable, data.decode("utf-8", "replace").split("\n")))


def display_width(text: str) -> int:
    """Columns of a terminal: wide East Asian characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """The text cut to `width` columns, an ellipsis saying so."""
    if display_width(text) <= width:
        return text
    kept = ""
    for c in text:
        if display_width(kept + c) > width - 1:
            break
        kept += c
    return kept + "…"


def pad(text: str, width: int) -> str:
    """The text followed by spaces up to `width` columns."""
    return text + " " * (width - display_width(text))


def spreadsheet_safe(text: str) -> str:
    """Text that a spreadsheet will not run as a formula: an apostrophe goes before a leading = + - @, of any width, or
    tab.
    """
    first = unicodedata.normalize("NFKC", text[:1])
    return "'" + text if first in ("=", "+", "-", "@", "\t", "\r") else text


def file_stem(prompt_id: str) -> str:
    """A file name for a prompt: its letters and digits, and a hash that keeps names apart and never changes."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt_id.lower()).strip("-")[:40].rstrip("-")
    digest = hashlib.sha256(prompt_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def counted(n: int, noun: str) -> str:
    """ "1 prompt", "2,000 prompts"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
