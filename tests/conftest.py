"""Session-wide strictness: rank promotion raises, shapes in annotations are checked, compiles are cached."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# In the environment, as some tests run programs. One cache for each process: JAX writes an entry in place, and a reader
# could find half of it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(os.environ.get("LPE_JAX_CACHE", Path(tempfile.gettempdir()) / "lpe_jax_compilation_cache"))
    / os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# Most of a run is compiling programs that compute for milliseconds. What XLA itself makes of a program, fusions, copies
# and collectives, stays as it is; LLVM tries less hard.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in what a shell starts behind itself, and what tests run would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """Drops compiled functions after each file.

    Each keeps a few memory maps; those of all files together are more than Linux allows a process, which then crashes.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forget_modules(tmp_path_factory):
    """Drops modules that a file's tests wrote and imported: another file may have one of that name."""
    yield
    made = tmp_path_factory.getbasetemp().parent
    # A copy in one go: a thread of a test may still import something.
    for name, module in sys.modules.copy().items():
        if (path := getattr(module, "__file__", None)) and Path(path).is_relative_to(made):
            del sys.modules[name]
