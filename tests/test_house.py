"""Rules of the house that a machine can check."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dangers import dangers, dangers_of

ROOT = Path(__file__).parents[1]
# Left to right, as a rollout flows. A room may import those to its left.
ROOMS = ["prompts", "models", "decoding", "planning", "judging", "estimation", "evaluation", "reporting"]
# Entered from both sides; they may import only each other's neighbours named here.
OPEN_TO_ALL = {"types", "errors", "version", "machine", "records"}
PACKAGE = ROOT / "lpe_jax"
# What joins the rooms; none of them imports any of these.
BESIDE = {
    "live",
    "job",
    "rejudge",
    "stored",
    "recall",
    "page",
    "report",
    "loading",
    "asked",
    "sweep",
    "shards",
    "together",
    "results",
    "drawing",
    "dry",
    "progress",
    "processes",
    "plan",
    "export",
    "inspect_logs",
    "trials",
    "benchmark",
}


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too, with the names imported from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("lpe_jax.")}


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_one_to_its_right(room):
    right = set(ROOMS[ROOMS.index(room) + 1 :]) | BESIDE
    for path in (PACKAGE / room).glob("*.py"):
        assert not rooms_imported(path) & right, path


@pytest.mark.parametrize("room", ["estimation", "evaluation"])
def test_statistics_know_no_model(room):
    for path in (PACKAGE / room).glob("*.py"):
        assert rooms_imported(path) <= {"types", "machine", "estimation", "evaluation"}, path
        outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"jax", "numpy", "lpe_jax"}, path


def test_nothing_leans_on_the_benchmark():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "benchmark":
            assert "benchmark" not in rooms_imported(path), path


def test_records_and_types_lean_on_no_room():
    for path in [*(PACKAGE / "records").glob("*.py"), PACKAGE / "types.py", PACKAGE / "errors.py"]:
        assert rooms_imported(path) <= OPEN_TO_ALL, path


def test_the_import_check_can_fail(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from lpe_jax.reporting import table\n")
    assert rooms_imported(path) == {"reporting"}


# Where code is loaded by name after all, and whose name it is.
NAMED_BY_THE_USER = {
    "lpe_jax/judging/predicate.py": ["importlib.import_module"],  # the judge that --judge names
    "experiments/benchmark.py": ["importlib.import_module"],  # to see whether torch is there
}


def test_nothing_from_outside_is_executed():
    seen = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        if found := dangers_of(path):
            seen[str(path.relative_to(ROOT))] = found
    assert seen == NAMED_BY_THE_USER


DANGEROUS = [
    *("import pickle", "from pickle import *", "import dill as d", "from joblib import load", "import marshal, json"),
    *("import runpy", "from code import interact", "import builtins", "import ctypes", "import _pickle"),
    *("eval('1')", "exec(x)", "f = eval", "map(exec, xs)", "compile(x, 'x', 'exec')", "__import__(x)"),
    *("__builtins__['eval']", "getattr(o, 'eval')(x)", "o.exec(x)", "frame.eval('a + b')"),
    *("import os\nos.system(x)", "from os import popen as p\np(x)", "import os as o\no.execvp(x, y)"),
    *("import subprocess\nsubprocess.run(x, shell=True)", "import subprocess as s\ns.getoutput(x)"),
    *("kwargs = {'shell': True}", "kwargs['shell'] = True", "options.trust_remote_code = flag"),
    *("import importlib\nimportlib.import_module(x)", "from importlib import import_module\nimport_module(x)"),
    *("import importlib.util as u\nu.spec_from_file_location(x, y)", "from importlib import reload\nreload(x)"),
    *("import torch\ntorch.load(x)", "from torch import load as read\nread(x)", "import torch.jit as j\nj.load(x)"),
    *("f(x, weights_only=False)", "f(x, weights_only=flag)", "f(x, trust_remote_code=True)", "f(allow_pickle=x)"),
    *("import numpy as np\nnp.load(x)", "import jax.numpy as jnp\njnp.load(x)", "import pandas as p\np.read_pickle(x)"),
    *(
        "import yaml\nyaml.load(x)",
        "from yaml import unsafe_load\nunsafe_load(x)",
        "import yaml\nf(Loader=yaml.Loader)",
    ),
    *("import jinja2\njinja2.Template(x)", "from jinja2 import Environment\nEnvironment()"),
]
HARMLESS = [
    *("model.eval()", "import re\nre.compile(x)", "lowered.compile()", "import torch\ntorch.compile(x)"),
    *("import subprocess\nsubprocess.run([x], shell=False)", "f(trust_remote_code=False)", "f(weights_only=True)"),
    *("import yaml\nyaml.safe_load(x)", "import json\njson.load(x)", "import importlib.metadata", "getattr(o, name)"),
    *(
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "loading.load(x)",
        "o.system",
        "kwargs = {'shell': False}",
    ),
    *("import multiprocessing\nmultiprocessing.get_context('spawn')", "# eval", "'exec'"),
]


@pytest.mark.parametrize("source", DANGEROUS)
def test_dangers_are_seen(source):
    assert dangers(source)


@pytest.mark.parametrize("source", HARMLESS)
def test_what_is_harmless_is_let_be(source):
    assert dangers(source) == []


PROGRAMS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "launch.run(" in p.read_text())


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_quick_and_loads_no_jax(program):
    code = f"import sys, experiments.{program}; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{program}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - began)
    assert "flags:" in done.stdout
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_short(program):
    assert len((ROOT / "experiments" / f"{program}.py").read_text().splitlines()) <= 150


def test_public_functions_say_what_they_do():
    """Every public function, class and module has a docstring."""
    bare = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree) and path.name != "version.py":
            bare.append(str(path))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert bare == []
