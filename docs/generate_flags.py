"""Writes docs/flags.md from the flags of the programs themselves.

python docs/generate_flags.py
"""

import concurrent.futures
import json
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
from experiments import help_text
asked = json.load(sys.stdin)
program = importlib.import_module("experiments." + asked["program"])
own = flags.FLAGS.get_key_flags_for_module(program.__name__)
told = [
    {"name": flag.name, "module": flags.FLAGS.find_module_defining_flag(flag.name), "topic": topic,
     "boolean": bool(flag.boolean), "default": help_text.default(flag), "meaning": help_text.meaning(flag)}
    for topic, flags_of_it in help_text.by_topic(own, program).items() for flag in flags_of_it
]
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
    users: dict[str, list[str]] = {}
    of_module: dict[str, list[dict]] = {}
    for program, said in sorted(found.items()):
        for module in dict.fromkeys(flag["module"] for flag in said["flags"]):
            users.setdefault(module, []).append(program)
            of_module[module] = [flag for flag in said["flags"] if flag["module"] == module]
    shared = [module for module, those in users.items() if len(those) > 1]
    lines = [HEAD, f"## {SHARED}\n"]
    for module in sorted(shared, key=lambda module: -len(of_module[module])):
        lines += [f"Of {', '.join(f'`{program}`' for program in users[module])}:\n", *_tables(of_module[module])]
    for program, said in sorted(found.items()):
        lines += [f"## {program}\n", said["doc"].splitlines()[0] + "\n"]
        own = [flag for flag in said["flags"] if flag["module"] not in shared]
        lines += _tables(own) if own else ["No flags of its own.\n"]
    return "\n".join(lines)


def _tables(flags: list[dict]) -> list[str]:
    """A table per topic."""
    lines = []
    for topic in dict.fromkeys(flag["topic"] for flag in flags):
        lines += ["| flag | default | meaning |" if topic == "flags" else f"| {topic} | default | meaning |"]
        lines += ["|---|---|---|"]
        for flag in flags:
            if flag["topic"] == topic:
                name = f"--[no]{flag['name']}" if flag["boolean"] else f"--{flag['name']}"
                default = f"`{flag['default']}`" if flag["default"] and not flag["boolean"] else flag["default"]
                lines.append(f"| `{name}` | {default} | {flag['meaning'].replace('|', chr(92) + '|')} |")
        lines.append("")
    return lines


def gather(commands: dict[str, list[list[str]]] | None = None) -> dict[str, dict]:
    """told, of every program."""
    names = programs()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda p: told(p, (commands or {}).get(p, [])), names), strict=True))


if __name__ == "__main__":
    PAGE.write_text(page(gather()))
