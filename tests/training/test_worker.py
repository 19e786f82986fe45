"""A worker by itself, without Ray: rows that come while it trains are trained on as if they had all been there."""

from itertools import pairwise

import numpy as np
import pytest

from rayfm.batch import SparseBatch
from rayfm.hyperparameters import Hyperparameters
from rayfm.training import shard
from rayfm.training.messages import WorkerSetup
from rayfm.training.shard import BlockSlice
from rayfm.training.worker import Worker

DIM = 40


@pytest.fixture
def rows(monkeypatch):
    """1,100 rows of 0 to 8 features; `ray.get` gives back a block as it is."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 1100)
    keys = np.concatenate([np.sort(rng.choice(DIM, length, replace=False)) for length in lengths])
    values = rng.normal(size=len(keys))
    monkeypatch.setattr(shard.ray, "get", lambda block: block)
    return SparseBatch.from_csr(np.concatenate([[0], np.cumsum(lengths)]), keys, values, rng.integers(0, 2, 1100))


def slices(rows, cuts):
    bounds = [0, *cuts, rows.num_rows]
    pairs = pairwise(bounds)
    return [BlockSlice(rows.rows(start, stop).to_arrow(), 0, stop - start) for start, stop in pairs]


def new_worker(optimizer="adam", threads=2):
    values = Hyperparameters.of(
        num_factors=3,
        predictor_type="binary_classifier",
        mini_batch_size=2,
        optimizer=optimizer,
        factors_init_sigma=0.1,
    )
    worker = Worker(0, WorkerSetup(values, 7, 1, 10**9, threads), 0.0)
    worker.warm_up()
    return worker


def total(reports):
    sums = reports[0].sums
    for report in reports[1:]:
        sums = sums + report.sums
    return sums.values(), sum(report.num_rows for report in reports), [r for report in reports for r in report.running]


@pytest.mark.parametrize("optimizer", ["adam", "ftrl"])
@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 700), (701,), range(7, 1100, 7)], ids=["one", "few", "odd", "many"])
def test_train_arrived__is_the_first_epoch_bit_for_bit(rows, optimizer, cuts):
    early, late = new_worker(optimizer), new_worker(optimizer)
    early.prepare(DIM)
    parts = slices(rows, cuts)
    reports = [early.train_arrived([part], is_last=False) for part in parts]
    reports.append(early.train_arrived([], is_last=True))
    assert early.load({"train": parts}, DIM) == rows.num_rows

    late.load({"train": slices(rows, ())}, DIM)
    expected = [late.train_round(0, index, 3, [], exchange=False) for index in range(3)]
    (measures, count, running), (wanted, wanted_count, wanted_running) = total(reports), total(expected)
    assert count == wanted_count == rows.num_rows
    assert measures == pytest.approx(wanted)
    assert [batch for batch, _ in running] == [batch for batch, _ in wanted_running] == [0, 500]
    for worker in (early, late):
        worker.train_round(1, 0, 1, [], exchange=False)
    for one, other in zip(early._parameters, late._parameters, strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_arrived__waits_for_whole_mini_batches(rows):
    worker = new_worker()
    worker.prepare(DIM)
    parts = slices(rows.rows(0, 8), (1, 4, 5))
    assert [worker.train_arrived([part], is_last=False).num_rows for part in parts] == [0, 4, 0, 4]
    assert worker.train_arrived([], is_last=True).num_rows == 0


def test_warm_up__tells_how_long_things_took():
    worker = Worker(0, new_worker().setup, 0.0)
    starting_s, compiling_s = worker.warm_up()
    assert starting_s > 1e9  # since 1970, when it is said to have been asked for
    assert 0 < compiling_s < 300
