"""What a store costs per rollout does not grow with what is in it; docs/reliability.md has the figures of a million."""

import pytest

from tests.records.scale import alone


@pytest.mark.slow
def test_time_and_memory_stay_small(tmp_path):
    """Bounds are several times what was measured, in seconds of a processor, as others may be at work beside."""
    written, found = {}, {}
    for rows in (40_000, 200_000):
        written[rows] = alone("write", tmp_path / str(rows), rows)
        found[rows] = alone("read", tmp_path / str(rows), rows)
        assert written[rows]["rows a second at last"] > 2000
        assert found[rows]["of a processor"] < 0.3 + 10e-6 * rows
    small, large = found.values()
    assert written[200_000]["MB at last"] < written[40_000]["MB at last"] + 50
    assert large["MB more when open"] < small["MB more when open"] + 160_000 * 100e-6
    assert large["MB more at most"] < 250


@pytest.mark.slow
def test_many_small_shards_open(tmp_path):
    """A thousand of them, as a run of eight hours writes that draws two rollouts a second."""
    alone("write", tmp_path, 64_000, 32)
    found = alone("read", tmp_path, 64_000)
    assert found["shards"] == 1000 and found["of a processor"] < 1000 * 1e-3
