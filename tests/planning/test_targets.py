"""What can be planned for, and what is said where it cannot."""

import pytest

from lpe_jax.errors import UserError
from lpe_jax.planning import targets
from lpe_jax.planning.chips import CHIPS, GIB, in_words


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "no chip 'v9'; known are cpu, v5e"),
        ("v5e", "as v5e:2x2"),
        ("v5p:4", "as v5p:2x2x1"),
        ("h200:0", "h200:8 for eight"),
        ("h200:2x2", "h200:8 for eight"),
        ("", "no chip ''"),
    ],
)
def test_topologies_that_are_none(topology, message):
    with pytest.raises(UserError, match=message):
        targets.split_topology(topology)


def test_topologies_that_are():
    assert targets.split_topology("cpu") == (None, "")
    assert targets.split_topology("v5e:4x4") == (CHIPS["v5e"], "4x4")
    assert targets.split_topology("h200") == (CHIPS["h200"], "")
    assert targets.split_topology("a100:8") == (CHIPS["a100"], "8")


@pytest.mark.parametrize(("topology", "extra"), [("v5e:2x2", r"lpe_jax\[tpu\]"), ("h100", r"lpe_jax\[cuda13\]")])
def test_what_is_not_installed_is_named(topology, extra, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install '{extra}'"):
        targets.find(topology)


def test_the_environment_is_set_and_what_is_there_kept(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for name in targets._ENVIRONMENT:
        if name != "CUDA_VISIBLE_DEVICES":
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
    targets.prepare()
    environment = targets.os.environ
    assert environment["JAX_PLATFORMS"] == "cpu" and environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] == "1"


def test_a_gpus_share_of_memory_is_that_of_the_environment(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert targets._share(CHIPS["h200"]) == 0.75 and targets._share(CHIPS["v5e"]) == 1.0
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert targets._share(CHIPS["h200"]) == 0.9 and targets._share(CHIPS["v5e"]) == 1.0
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=most"):
        targets._share(CHIPS["h200"])


def test_a_target_config_is_balanced_and_names_its_chip():
    text = targets.target_config(CHIPS["h200"])
    assert text.count("{") == text.count("}") and text.count('"NVIDIA H200"') == 2
    assert f"device_memory_size: {CHIPS['h200'].memory}" in text and "ACCELERATED_FEATURES" in text
    assert "ACCELERATED_FEATURES" not in targets.target_config(CHIPS["a100"])


def test_bytes_in_words():
    assert in_words(5 * GIB // 4) == "1.25 GiB" and in_words(3 << 20) == "3.0 MiB"
