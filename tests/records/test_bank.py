"""Banks come back as they were written, in an order that tells nothing, and damage is seen."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from lpe_jax.errors import RunError
from lpe_jax.records.bank import BankStore, Rows, Shard, cell_order, read_bank
from lpe_jax.records.run import Run, read_run, write_record
from lpe_jax.types import Outcome

ALPHAS, N = (1.0, 0.5, 0.0), 40
IDS = ("p", "q")
OUTCOMES = np.array([Outcome.COMPLIED, Outcome.REFUSED, Outcome.UNSCORED], object)


def shard(prompt_id, grid=True):
    """Five rows per alpha, ten of the last kind and more: all columns differ from row to row."""
    rng = np.random.default_rng(len(prompt_id))
    cell, count = np.repeat(np.arange(3), 5), np.tile([1, 4, 5, 10, 20], 3)
    r = len(cell)
    sums = {f.name: rng.normal(size=r).astype(np.float32) for f in dataclasses.fields(Rows) if f.name[:4] in SUMS}
    rows = Rows(
        cell=cell,
        count=count,
        outcome=OUTCOMES[np.arange(r) % 3],
        finish=np.array(["stop", "length", "decided"])[np.arange(r) % 3],
        length=np.arange(1, r + 1),
        grid_logp=rng.normal(size=(r, 3)).astype(np.float32) if grid else None,
        text=["kept" if i % 3 == 0 else None for i in range(r)],
        **sums,
    )
    return Shard(prompt_id, ALPHAS, rows, 90, 3, -math.inf, math.inf)


SUMS = ("logp", "path")


def written(folder, grid=True, finish=True):
    settings = {"alphas": list(ALPHAS), "n": N, "seed": 3}
    with Run(folder, settings, {"places": {prompt_id: number for number, prompt_id in enumerate(IDS)}}) as run:
        store = BankStore(folder)
        for number in (1, 0):  # as they happen to finish
            store.write(number, shard(IDS[number], grid))
        if finish:
            run.finish()
    return folder


@pytest.mark.parametrize("grid", [True, False])
def test_shards_come_back(tmp_path, grid):
    store = BankStore(written(tmp_path / "run", grid))
    for number, prompt_id in enumerate(IDS):
        before, after = shard(prompt_id, grid), store.read(number)
        assert dataclasses.replace(before, rows=None) == dataclasses.replace(after, rows=None)
        for field in dataclasses.fields(Rows):
            assert np.array_equal(getattr(before.rows, field.name), getattr(after.rows, field.name)), field.name


def test_expansion_keeps_every_count(tmp_path):
    bank = read_bank(written(tmp_path / "run"))
    assert bank.logp.shape == (2, 3, N, 3) and bank.logp.dtype == np.float32
    for i, prompt_id in enumerate(IDS):
        rows = shard(prompt_id).rows
        for cell in range(3):
            own = np.flatnonzero(rows.cell == cell)
            # Lengths name the rows: each comes as often as its count says, with all that belongs to it.
            found = bank.tokens[i, cell] - 1
            assert np.array_equal(np.bincount(found, minlength=15)[own], rows.count[own])
            assert np.array_equal(bank.complied[i, cell], rows.outcome[found] == Outcome.COMPLIED)
            assert np.array_equal(bank.scored[i, cell], rows.outcome[found] != Outcome.UNSCORED)
            assert np.array_equal(bank.logp[i, cell], rows.grid_logp[found])
            assert np.array_equal(bank.path_score[i, cell], rows.path_score[found])
            assert np.array_equal(bank.path_variance[i, cell], rows.path_variance[found])
    assert bank.naive_scored.tolist() == [90, 90] and bank.naive_complied.tolist() == [3, 3]
    assert np.isneginf(bank.truth).all() and np.isposinf(bank.truth_error).all()


def test_truth_of_the_caller_comes_first(tmp_path):
    bank = read_bank(written(tmp_path / "run"), truth={"q": (-3.5, 0.1)})
    assert np.isnan(bank.truth[0]) and bank.truth[1] == -3.5 and bank.truth_error[1] == 0.1


def test_without_a_grid_log_p_is_known_where_it_was_taken(tmp_path):
    bank, rows = read_bank(written(tmp_path / "run", grid=False)), shard("p").rows
    found = bank.tokens[0] - 1  # [A, N]
    rows = shard("p", grid=False).rows
    assert np.array_equal(bank.logp[0, 1, :, 0], rows.logp_original[found[1]])
    assert np.array_equal(bank.logp[0, 1, :, 1], rows.logp_path[found[1]])
    assert np.array_equal(bank.logp[0, 1, :, 2], rows.logp_variant[found[1]])
    assert np.isnan(bank.logp[0, 0, :, 1]).all() and np.isnan(bank.logp[0, 2, :, 1]).all()


def test_order_is_random_and_fixed():
    """What comes first is uniform over the cell: chi-square over 3,000 seeds, by chance once in 10,000 runs."""
    first = [cell_order(seed, "p", 0.5, 6)[0] for seed in range(3000)]
    assert stats.chisquare(np.bincount(first, minlength=6)).pvalue > 1e-4
    orders = [tuple(cell_order(*which, 40)) for which in ((0, "p", 0.5), (1, "p", 0.5), (0, "q", 0.5), (0, "p", 0.0))]
    assert len(set(orders)) == 4 and tuple(cell_order(0, "p", 0.5, 40)) == orders[0]
    assert sorted(orders[0]) == list(range(40))


def test_damage_is_seen(tmp_path):
    folder = written(tmp_path / "run")
    path = folder / "bank" / "000001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"000001\.parquet is damaged: its sha256 is not the one in manifest\.jsonl"):
        read_bank(folder)
    path.unlink()
    with pytest.raises(RunError, match=r"000001\.parquet is named in manifest\.jsonl but does not exist"):
        read_bank(folder)
    manifest = folder / "bank" / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text(lines[0] + "\n")
    with pytest.raises(RunError, match="no shard of prompt 0"):
        read_bank(folder)
    manifest.write_text(lines[1] + "\n")
    with pytest.raises(RunError, match=r"manifest\.jsonl, line 1 is damaged, or one before it is missing"):
        read_bank(folder)


def test_a_shard_of_another_run_is_seen(tmp_path):
    folder = written(tmp_path / "run")
    record = read_run(folder)
    record["settings"]["n"] = N + 1
    write_record(folder, record)
    with pytest.raises(RunError, match="not what run.json describes"):
        read_bank(folder)


def test_what_is_no_bank(tmp_path):
    with pytest.raises(RunError, match="holds no bank"):
        read_bank(tmp_path)
    with pytest.raises(RunError, match="is not finished"):
        read_bank(written(tmp_path / "begun", finish=False))
