"""Rules of the house that a machine can check."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    "loading",
    "asked",
    "sweep",
    "shards",
    "together",
    "results",
    "processes",
    "plan",
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


FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dangers(path: Path) -> list[str]:
    """Ways of executing what comes from outside."""
    found = [name for name in imports(path) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(node.func.id)
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(node.arg)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load", "numpy.load"):
            found.append(ast.unparse(node))
    return found


def test_nothing_from_outside_is_executed(tmp_path):
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert dangers(path) == [], path
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\neval('1')\nf(trust_remote_code=True)\ntorch.load('x')\n")
    assert len(dangers(bad)) == 4


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
