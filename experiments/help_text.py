"""What --help says: a program's everyday flags and the names of the others by topic; --helpfull has all meanings.

A module that defines flags may have TOPICS, {topic: names}, and a program EVERYDAY, the names that most calls need. A
program without EVERYDAY has few flags, and --help says all.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from types import ModuleType

from absl import flags

FLAGS = flags.FLAGS
# Columns of the names, and of a line in a window that is wider than one reads.
_NAMES, _WIDEST = 22, 110
_OWN = "flags"


def of(program: ModuleType, name: str, *, full: bool) -> str:
    """The whole text; `name` is what absl calls the program's module."""
    found = [flag for flag in FLAGS.get_key_flags_for_module(name) if flag.name != "flagfile"]
    everyday = () if full else getattr(program, "EVERYDAY", ())
    lines = [program.__doc__.rstrip(), ""]
    if everyday:
        lines += ["everyday flags:", *_told(FLAGS[name] for name in everyday), ""]
        lines += ["all other flags, whose meaning --helpfull says:"]
        for topic, own in by_topic(found, program).items():
            if names := [_name(flag).removeprefix("--") for flag in own if flag.name not in everyday]:
                lines += _columns(topic, ", ".join(names))
    else:
        for topic, own in by_topic(found, program).items():
            lines += [f"{topic}:" if topic == _OWN else f"flags, {topic}:", *_told(own), ""]
        lines.pop()
    return "\n".join([*lines, "", "--flagfile=FILE reads flags from a file, one a line."])


def by_topic(found: Iterable[flags.Flag], program: ModuleType) -> dict[str, list[flags.Flag]]:
    """Flags under the topics of the modules that define them, topics in the order in which they come."""
    topics: dict[str, list[flags.Flag]] = {}
    for flag in found:
        module = sys.modules.get(FLAGS.find_module_defining_flag(flag.name), program)
        own = getattr(module, "TOPICS", {})
        topic = next((topic for topic, names in own.items() if flag.name in names), _OWN)
        topics.setdefault(topic, []).append(flag)
    return topics


def meaning(flag: flags.Flag) -> str:
    """Its help, as one line, without what absl adds; the values of an enum stand before it."""
    said = " ".join(flag.help.split()).removesuffix("; repeat this option to specify a list of values")
    if values := re.match(r"<([^>]*\|[^>]*)>: ", said):
        said = f"{values[1].replace('|', ', ')}. {said[values.end() :]}"
    return said


def default(flag: flags.Flag) -> str:
    """What it is if it is not given; empty where that is nothing, or where the meaning says it."""
    value = flag.default
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _told(own: Iterable[flags.Flag]) -> list[str]:
    return [
        line
        for flag in own
        for line in _columns(_name(flag), meaning(flag) + (f" [{default(flag)}]" if default(flag) else ""))
    ]


def _name(flag: flags.Flag) -> str:
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"


def _columns(name: str, said: str) -> list[str]:
    """A name, and beside it, or below where it is long, what is said of it."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    wrapped = textwrap.wrap(said, max(width - _NAMES, 30), break_long_words=False, break_on_hyphens=False)
    if len(name) > _NAMES - 4:
        wrapped.insert(0, "")
    names = [name, *[""] * (len(wrapped) - 1)]
    return [f"  {first:<{_NAMES - 2}}{rest}".rstrip() for first, rest in zip(names, wrapped, strict=True)]
