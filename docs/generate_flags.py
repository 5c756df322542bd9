"""Writes docs/flags.md from the flags of the programs themselves.

python docs/generate_flags.py
"""

import concurrent.futures
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "flags.md"
HEAD = """# Flags of every program

Made by `python docs/generate_flags.py` from what `--help` says. Every program takes `--flagfile=FILE` too, a file with
a flag a line. Flags that several programs share are told once, in the first section.
"""
SHARED = "Shared by programs that draw or judge"
# Run by a Python of its own for each program, as programs have flags of one name that say different things. JAX is not
# imported. What is parsed is parsed as a command line is, and nothing runs.
_CHILD = """
import importlib, json, sys
from absl import flags
asked = json.load(sys.stdin)
program = importlib.import_module("experiments." + asked["program"])
told = []
for name in sorted(flags.FLAGS):
    flag, module = flags.FLAGS[name], flags.FLAGS.find_module_defining_flag(name)
    if not module.startswith("experiments."):
        continue
    told.append({"name": name, "module": module, "boolean": bool(flag.boolean), "default": flag.default,
                 "meaning": flag.help})
said = []
for argv in asked["commands"]:
    flags.FLAGS.unparse_flags()
    try:
        rest = flags.FLAGS([asked["program"], *argv])
        said.append({"rest": rest[1:], "wrong": None})
    except flags.Error as error:
        said.append({"rest": [], "wrong": str(error)})
    flags.FLAGS.unparse_flags()
json.dump({"doc": program.__doc__, "flags": told, "commands": said, "jax": "jax" in sys.modules}, sys.stdout)
"""


def programs() -> list[str]:
    """All that `python -m experiments.X` can be."""
    return sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "launch.run(" in p.read_text())


def told(program: str, commands: list[list[str]] = ()) -> dict:
    """What a program says of itself and its flags; and of command lines what is not flags, or what is wrong."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        input=json.dumps({"program": program, "commands": list(commands)}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def page(found: dict[str, dict]) -> str:
    """The page, of what each program says."""
    shared = {"experiments.vocabulary", "experiments.judges", "experiments.quality", "experiments.folder"}
    users: dict[str, set[str]] = {}
    for program, said in found.items():
        for flag in said["flags"]:
            if flag["module"] in shared:
                users.setdefault(flag["module"], set()).add(f"`{program}`")
    lines = [HEAD, f"## {SHARED}\n"]
    for module in sorted(users, reverse=True):
        some = next(said for said in found.values() if any(flag["module"] == module for flag in said["flags"]))
        lines += [f"Of {', '.join(sorted(users[module]))}:\n"]
        lines += _table([flag for flag in some["flags"] if flag["module"] == module])
    for program, said in sorted(found.items()):
        lines += [f"## {program}\n", said["doc"].splitlines()[0] + "\n"]
        own = [flag for flag in said["flags"] if flag["module"] not in shared]
        lines += _table(own) if own else ["No flags of its own.\n"]
    return "\n".join(lines)


def _table(flags: list[dict]) -> list[str]:
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for flag in flags:
        name = f"--[no]{flag['name']}" if flag["boolean"] else f"--{flag['name']}"
        meaning = " ".join(flag["meaning"].split())
        # absl has the values of an enum in front.
        if values := re.match(r"<([^>]*\|[^>]*)>: ", meaning):
            meaning = f"{values[1].replace('|', ', ')}. {meaning[values.end() :]}"
        rows.append(f"| `{name}` | {_default(flag['default'])} | {meaning.replace('|', chr(92) + '|')} |")
    return [*rows, ""]


def _default(value) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{','.join(map(str, value)) if isinstance(value, list) else value}`"


def gather(commands: dict[str, list[list[str]]] | None = None) -> dict[str, dict]:
    """told, of every program."""
    names = programs()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda p: told(p, (commands or {}).get(p, [])), names), strict=True))


if __name__ == "__main__":
    PAGE.write_text(page(gather()))
