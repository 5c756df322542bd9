"""Memory by part, collectives, and the search for the largest batch."""

import jax
import pytest

from lpe_jax.decoding.sampler import Sampler
from lpe_jax.models.pair import abstract_pair
from lpe_jax.planning.compiled import TooLarge, compile_decode, device_bytes, largest
from tests.helpers import tiny_config, tiny_pair
from tests.planning.test_counts import abstract_sampler


def test_memory_by_part_adds_up():
    sampler = abstract_sampler("shared", grid=(1.0, 0.0))
    found = compile_decode(sampler)
    program = sampler.lower().compile().memory_analysis()
    arguments = program.argument_size_in_bytes
    later = ("results written anew", "temporary", "program", "a prompt on its way in")
    assert sum(size for part, size in found.memory.items() if part not in later) == arguments
    output = program.output_size_in_bytes - program.alias_size_in_bytes
    own = found.total - found.memory["a prompt on its way in"]
    assert own == arguments + output + program.temp_size_in_bytes + program.generated_code_size_in_bytes
    c = sampler.pair.config
    assert found.memory["a prompt on its way in"] == 2 * 2 * 4 * c.num_layers * 2 * c.num_kv_heads * 24 * c.head_dim
    # Of the padding only the seed, the number of steps and the grid are left on a CPU, which pads nothing.
    assert 0 <= found.memory["padding"] <= 64
    assert found.memory["weights"] == sum(a.size * 4 for a in sampler.pair.leaves)
    assert found.memory["results written anew"] > 0 and found.collectives == {}


def test_the_original_alone_takes_the_weights_that_differ_once_more():
    sampler = abstract_sampler("shared")
    together, alone = compile_decode(sampler), compile_decode(sampler, alone=True)
    differing = sum(
        a.size * 4 for a, shared in zip(sampler.pair.leaves, sampler.pair.shared, strict=True) if not shared
    )
    assert alone.total - together.total == differing // 2 > 0


def test_shapes_compile_to_the_program_of_real_arrays():
    """What is planned is what is run."""
    real = abstract_sampler()
    pair = tiny_pair(num_tokens=60, eos_ids=(3,))  # which differs in these:
    doubled = lambda name: name.endswith(("o_proj", "down_proj"))  # noqa: E731
    shapes = abstract_pair(pair.config, doubled=doubled, num_tokens=60, eos_ids=(3,), dtype=pair.dtype)
    texts = []
    for own in (pair, shapes):
        sampler = Sampler(own, {}, str, real.settings, 0, 16, 24)
        texts.append(sampler.lower().as_text())
    assert texts[0] == texts[1] and "while" in texts[0]


def test_collectives_are_counted_by_kind(monkeypatch):
    class Fake:
        def lower(self):
            return self

        compile = lower

        def memory_analysis(self):
            return jax.jit(lambda x: x + 1).lower(1.0).compile().memory_analysis()

        def as_text(self):
            return (
                "%a = f32[2]{0} all-reduce(%x), to_apply=%add\n"
                "ROOT %b = (f32[2]{0}, f32[4]{0}) all-gather-start(%y)\n %c = f32[4]{0} all-gather-done(%b)\n"
                "%d = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%e), to_apply=%add\n%f = f32[] add(%all-reduce.1)\n"
            )

    sampler = abstract_sampler()
    monkeypatch.setattr(type(sampler), "lower", lambda self: Fake())
    assert compile_decode(sampler).collectives == {"all-reduce": 2, "all-gather": 1}


@pytest.mark.parametrize(
    ("said", "total"),
    [("memory required for HLO temporaries (18.25G) exceeds available HBM (15.75G).", 73 << 28), ("too much", None)],
)
def test_what_the_compiler_refuses_is_too_large(said, total, monkeypatch):
    def refuse(self):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total {said}")

    sampler = abstract_sampler()
    monkeypatch.setattr(type(sampler), "lower", refuse)
    assert compile_decode(sampler) == TooLarge(total)


def test_other_failures_are_not_hidden(monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    sampler = abstract_sampler()
    monkeypatch.setattr(type(sampler), "lower", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_decode(sampler)


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("most", [1, 5, 8, 60, 500, 4000])
def test_the_largest_is_found_in_few_tries_however_wrong_the_guess(most, slope, says):
    """A device that holds `most` rows of 10 bytes; what is too large may not say by how much."""
    tried, limit = [], 1000 + 10 * most

    def total(rows):
        tried.append(rows)
        needed = 1000 + 10 * rows
        return needed if says or needed <= limit else None

    found = largest(total, limit, unit=8, fixed=1000, per_row=max(1, int(10 * slope)))
    assert found in tried and 0 < found <= most, tried
    assert len(tried) <= 6 and len(set(tried)) == len(tried)
    assert found >= min(most // 8 * 8 or most // 2, 0.7 * most), tried


def test_where_nothing_fits_none_is_found():
    assert largest(lambda rows: 100 + rows, 50, unit=8, fixed=100, per_row=1) == 0
    assert largest(lambda rows: None, 50, unit=8, fixed=100, per_row=1) == 0


def test_bytes_are_those_of_one_device():
    pair = abstract_pair(tiny_config(), doubled=lambda name: False, num_tokens=9, eos_ids=(0,), dtype="float32")
    assert device_bytes(pair) == 4 * tiny_config().num_params
