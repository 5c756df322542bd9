"""What a source file may not do, as nothing that comes from outside is to be executed."""

import ast
from pathlib import Path

# Modules that run what they read, or make code of text.
MODULES = {
    *("pickle", "cPickle", "_pickle", "pickle5", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"),
    *("runpy", "code", "codeop", "imp", "builtins", "pty", "ctypes", "cffi"),
}
# By what they are called after imports and their aliases are followed. Also where they are not called, but handed on.
NAMES = {
    *("eval", "exec", "compile", "__import__", "__builtins__", "__loader__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *("importlib.import_module", "importlib.reload", "importlib.util.spec_from_file_location"),
    *(
        "importlib.util.module_from_spec",
        "importlib.machinery.SourceFileLoader",
        "types.FunctionType",
        "types.CodeType",
    ),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.serialization.load", "pandas.read_pickle"),
    *("numpy.load", "numpy.lib.format.read_array", "jax.numpy.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "jinja2.Template", "jinja2.Environment"),
}
FAMILIES = ("os.exec", "os.spawn", "os.posix_spawn", "builtins.")
# Methods that make code of the text they are given; without an argument they are something else.
METHODS = {"eval", "exec"}
# What these switches may be, wherever they are written.
SWITCHES = {
    **dict.fromkeys(("trust_remote_code", "allow_pickle", "shell", "use_pickle", "pickled"), False),
    "weights_only": True,
}


def dangers(source: str) -> list[str]:
    """Every place in a source that may execute what comes from outside, by what it uses."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    found = [name for name in _imported(tree) if name.split(".")[0] in MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = _dotted(node, aliases)
            if name in NAMES or name.startswith(FAMILIES):
                found.append(name)
        if isinstance(node, ast.Call):
            found += _in_call(node)
        if isinstance(node, ast.keyword):
            found += _switched(node.arg, node.value)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                found += _switched(key.value if isinstance(key, ast.Constant) else None, value)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript | ast.Attribute):
            target = node.targets[0]
            last = target.attr if isinstance(target, ast.Attribute) else getattr(target.slice, "value", None)
            found += _switched(last, node.value)
    return found


def dangers_of(path: Path) -> list[str]:
    """dangers of a file."""
    return dangers(path.read_text(encoding="utf-8"))


def _imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What names that are imported stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """ "numpy.load" for np.load after import numpy as np; what has no such name is empty."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])


def _in_call(node: ast.Call) -> list[str]:
    found = []
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and node.args:
        found.append(f".{node.func.attr}")
    if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
        name = node.args[1]
        if isinstance(name, ast.Constant) and name.value in NAMES | {"system", "popen"}:
            found.append(f"getattr {name.value}")
    return found


def _switched(name: str | None, value: ast.AST) -> list[str]:
    if name not in SWITCHES or (isinstance(value, ast.Constant) and value.value is SWITCHES[name]):
        return []
    return [name]
