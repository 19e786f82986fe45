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


def new_worker(optimizer="adam", threads=2, **more):
    task = {"num_factors": 3, "predictor_type": "binary_classifier", "mini_batch_size": 2, "factors_init_sigma": 0.1}
    values = Hyperparameters.of(task, optimizer=optimizer, **more)
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


def test_result__of_ftrl_has_sums_of_squared_gradients(rows):
    """It keeps their roots. At next to no rate the gradients are those of AdaGrad, which keeps the sums."""
    slow = {f"{group}_lr": 1e-9 for group in ("bias", "linear", "factors")}
    sums = {}
    for optimizer, more in (("ftrl", {}), ("adagrad", {"factors_wd": 0})):
        worker = new_worker(optimizer, **slow, **more)
        worker.load({"train": slices(rows, ())}, DIM)
        worker.train_round(0, 0, 1, [], exchange=False)
        sums[optimizer] = worker._result(share_accumulators=True)[2]
        if optimizer == "ftrl":
            kept = [array.copy() for array in worker._second]
            worker._adopt([(worker._parameters, sums[optimizer])])
            for own, before in zip(worker._second, kept, strict=True):
                np.testing.assert_allclose(own, before, rtol=1e-6)
    for one, other in zip(sums["ftrl"], sums["adagrad"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-12)
    assert sums["ftrl"].bias[0] > 100
