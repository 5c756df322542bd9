"""What the documents claim is so: links, flags, commands, columns, and the code in them."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lpe_jax import export
from lpe_jax.records import bank, rollouts
from lpe_jax.types import Outcome, Rollout

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "BUILD.md", "CHANGELOG.md", "CONTRIBUTING.md")
DOCUMENTS = [*(ROOT / page for page in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
# What of a program's arguments is no flag; of the others none is.
ARGUMENTS = {
    "check": (1, 1),
    "export": (1, 1),
    "extrapolate": (1, 99),
    "forecast": (0, 1),
    "judge": (0, 1),
    "report": (1, 99),
}


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


generate_flags = module(ROOT / "docs" / "generate_flags.py")


def blocks(text):
    """Indented blocks of a document that are no part of a list, without their indentation."""
    for block in re.findall(r"(?:^|\n\n)((?:    .*\n|\n(?=    ))+)", text):
        yield re.sub(r"^    ", "", block, flags=re.M).strip("\n")


def commands(text):
    """(program, words) of each call of a program in a text: in blocks, in code within lines, and in docstrings."""
    for call in re.findall(r"python -m experiments\.(\w+)((?:[^\n`&|\\]|\\\n|\\[^\n])*)", text):
        program, rest = call
        rest = re.sub(r"\\\n\s*", " ", rest).split("  #")[0].split("   ")[0]
        # Called by a shell within quotes, whose end is not the program's.
        rest = rest.rstrip() if len(re.findall("[\"']", rest)) % 2 == 0 else rest.rstrip().rstrip("\"'")
        words = shlex.split(re.sub(r"\$\w+", "1", rest).replace(";", ""))
        # absl's own would print and end.
        yield program, [word for word in words if word != "--help"]


def sources():
    """(name, text) of whatever has commands in it."""
    for document in DOCUMENTS:
        yield document.name, document.read_text()
    for path in sorted((ROOT / "experiments").glob("*.py")):
        yield path.name, (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\\\n", "\\\n")


@pytest.fixture(scope="module")
def told():
    """What each program says of its flags and of every command that a document has of it."""
    calls = {}
    for name, text in sources():
        for program, words in commands(text):
            calls.setdefault(program, []).append((name, words))
    found = generate_flags.gather({program: [words for _, words in own] for program, own in calls.items()})
    assert set(calls) <= set(found), set(calls) - set(found)
    return found, calls


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_command_is_one_that_its_program_takes(told):
    """Parsed by the program's own flags, values too; nothing runs."""
    found, calls = told
    for program, own in calls.items():
        least, most = ARGUMENTS.get(program, (0, 0))
        for (name, words), said in zip(own, found[program]["commands"], strict=True):
            where = f"{name}: {program} {shlex.join(words)}"
            assert said["wrong"] is None, f"{where}: {said['wrong']}"
            # A program that is merely named has no arguments.
            assert len(said["rest"]) <= most and (not words or len(said["rest"]) >= least), where
    assert sum(map(len, calls.values())) > 60


@pytest.mark.parametrize(
    "text, expected",
    [
        ("    python -m experiments.plan --a=1 \\\n        --b='>=2'\n", [("plan", ["--a=1", "--b=>=2"])]),
        ("`python -m experiments.check RUN`, or", [("check", ["RUN"])]),
        ("    X=1 .venv/bin/python -m experiments.sample --n=$N & \n", [("sample", ["--n=1"])]),
        ('--command="cd x && python -m experiments.sample --n=3"\n', [("sample", ["--n=3"])]),
        ("    python -m experiments.judge       # again\n", [("judge", [])]),
    ],
)
def test_commands_are_found(text, expected):
    assert list(commands(text)) == expected


def test_a_wrong_command_is_seen():
    said = generate_flags.told("check", [["--repair", "RUN"], ["--repare", "RUN"], ["--repair=maybe"]])["commands"]
    assert [bool(one["wrong"]) for one in said] == [False, True, True] and said[0]["rest"] == ["RUN"]


def test_flags_in_the_documents_exist(told):
    found, _ = told
    known = {"help", "helpfull", "flagfile"}
    for said in found.values():
        assert not said["jax"]
        for flag in said["flags"]:
            known |= {flag["name"]} | ({f"no{flag['name']}"} if flag["boolean"] else set())
    for document in DOCUMENTS:
        for flag in re.findall(r"`--(?:\[no\])?(\w+)", document.read_text()):
            assert flag in known, f"{document.name}: --{flag}"


def test_the_page_of_flags_is_what_the_programs_say(told):
    page = generate_flags.page(told[0])
    assert generate_flags.PAGE.read_text() == page, "run python docs/generate_flags.py"
    for program, said in told[0].items():
        assert f"## {program}\n" in page and all(f"{flag['name']}`" in page for flag in said["flags"])


def helped(program, flag="--help"):
    command = [sys.executable, "-m", f"experiments.{program}", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("program", ["estimate", "sample"])
def test_help_opens_with_what_most_calls_need(told, program):
    """It fits a screen, and the meaning of the other flags, all under a topic, is one command away."""
    short, full = helped(program), " ".join(helped(program, "--helpfull").split())
    first, rest = short.split("everyday flags:")[1].split("all other flags, whose meaning --helpfull says:")
    everyday = re.findall(r"^  --(?:\[no\])?(\w+)", first, flags=re.M)
    assert 5 < len(everyday) < 12 and short.count("\n") < 70
    for flag in told[0][program]["flags"]:
        assert bool(re.search(rf"[ \]]{flag['name']}(,|\n)", rest)) != (flag["name"] in everyday), flag["name"]
        assert " ".join(flag["meaning"].split()) in full, flag["name"]
        assert flag["topic"] != "flags", flag["name"]


def test_a_program_with_few_flags_says_all_of_them():
    assert "--[no]repair" in helped("check") and "all other flags" not in helped("check")
    assert helped("check") == helped("check", "-h") == helped("check", "-?") == helped("check", "--helpfull")


def test_the_programs_are_listed():
    done = subprocess.run([sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^  (\w+) +\S", done.stdout, flags=re.M) == generate_flags.programs()


def test_nothing_is_left_to_fill_in():
    for document in DOCUMENTS:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", document.read_text()), document.name


def python_blocks(document):
    """Those that begin as Python does."""
    for block in blocks(document.read_text()):
        if re.match(r"(import|from|def|async def|>>>) ?", block):
            yield re.sub(r"^(>>>|\.\.\.) ?", "", block, flags=re.M) if ">>>" not in block else None, block


def test_python_in_the_documents_compiles():
    seen = 0
    for document in DOCUMENTS:
        for source, _ in python_blocks(document):
            if source is not None:
                compile(source, document.name, "exec")
                seen += 1
    assert seen >= 6


def columns(heading):
    """name, type of the table under a heading of docs/formats.md."""
    text = (ROOT / "docs" / "formats.md").read_text()
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", section.partition("\n### ")[0], flags=re.M)


@pytest.mark.parametrize(
    "heading, schema", [("Rollouts", rollouts.SCHEMA), ("Banks", bank.SCHEMA), ("Exports", export.SCHEMA)]
)
def test_columns_are_those_that_are_written(heading, schema):
    kinds = {"list<item: int32>": "list of int32", "list<item: float>": "list of float"}
    written = [(field.name, kinds.get(str(field.type), str(field.type))) for field in schema]
    # Arrow says list<element: ...> in some versions.
    written = [(name, kind.replace("element", "item")) for name, kind in written]
    assert columns(heading) == written


def test_the_one_liners_of_duckdb_run(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    store = rollouts.RolloutStore(tmp_path / "rollouts")
    store.append([
        Rollout("boat", alpha, i, np.arange(i + 1), "fold", "stop", -1.0, -1.0, -1.0, 0.0, 1.0)
        for alpha in (0.25, 0.5) for i in range(3)
    ])  # fmt: skip
    store.flush()
    ones = np.ones(3, np.float32)
    rows = bank.Rows(
        np.array([0, 0, 1]), np.array([2, 6, 8]), np.array([Outcome.COMPLIED, Outcome.REFUSED, Outcome.COMPLIED]),
        np.array(["stop"] * 3), np.ones(3, int), ones, ones, ones, ones, ones, None, ["fold", None, "fold"],
    )  # fmt: skip
    bank.BankStore(tmp_path).write(0, bank.Shard("boat", (1.0, 0.5), rows, 10, 0))
    said = {}
    for _, block in python_blocks(ROOT / "docs" / "formats.md"):
        if block.startswith("import duckdb"):
            query = re.search(r'duckdb\.sql\("(.*)"\)\.show\(\)$', block)[1]
            kind = re.search(r"RUN/(\w+)/", query)[1]
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.replace("RUN", str(tmp_path)), "formats.md", "exec"), {})
            said[kind] = duckdb.sql(query.replace("RUN", str(tmp_path))).fetchall()
    assert said == {
        "rollouts": [("boat", 0.25, 3, 2.0), ("boat", 0.5, 3, 2.0)],
        "bank": [("boat", 0.5, 1.0), ("boat", 1.0, 0.25)],
    }


def test_the_recipe_for_tensorboard_runs(tmp_path, monkeypatch):
    """With a writer that writes down what it is told."""
    written = []
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda folder: types.SimpleNamespace(add_scalar=lambda *said: written.append(said))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    events = [
        {"event": "loaded", "seconds": 1.0},
        {"event": "batch", "rollouts": 20, "tokens": 500, "seconds": 0.5},
        {"event": "batch", "rollouts": 60, "tokens": 900, "seconds": 3.0},
        {"event": "finished", "seconds": 9.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (block,) = (b for _, b in python_blocks(ROOT / "docs" / "formats.md") if "SummaryWriter" in b)
    # torch itself is not needed for it.
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.utils", types.ModuleType("torch.utils"))
    exec(compile(block.replace("RUN", str(tmp_path)), "formats.md", "exec"), {})
    assert written == [("tokens per second", 1000.0, 20), ("tokens per second", 300.0, 80)]
