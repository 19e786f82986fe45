"""A worker by itself, without Ray: rows that come while it trains are trained on as if they had all been there."""

import copy
from itertools import pairwise

import numpy as np
import pytest

from rayfm.batch import SparseBatch
from rayfm.hyperparameters import GROUPS, Hyperparameters
from rayfm.kernels.tables import second_states_in
from rayfm.training import shard
from rayfm.training.messages import Published, WorkerSetup
from rayfm.training.parameter_server import ParameterServer
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


def new_worker(optimizer="adam", threads=2, world_size=1, **more):
    task = {"num_factors": 3, "predictor_type": "binary_classifier", "mini_batch_size": 2, "factors_init_sigma": 0.1}
    values = Hyperparameters.of({**task, "optimizer": optimizer, **more})
    worker = Worker(0, WorkerSetup(values, 7, world_size, 10**9, threads), 0.0)
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
    expected = [late.train_round(0, index, 3) for index in range(3)]
    (measures, count, running), (wanted, wanted_count, wanted_running) = total(reports), total(expected)
    assert count == wanted_count == rows.num_rows
    assert measures == pytest.approx(wanted)
    assert [batch for batch, _ in running] == [batch for batch, _ in wanted_running] == [0, 500]
    for worker in (early, late):
        worker.train_round(1, 0, 1)
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
    still = {f"{group}_{name}": value for group in GROUPS for name, value in (("lr", 1e-9), ("init_sigma", 0.0))}
    sums = {}
    for optimizer in ("ftrl", "adagrad"):
        worker = new_worker(optimizer, world_size=2, **still)
        worker.load({"train": slices(rows, ())}, DIM)
        _, result = worker.train_round(0, 0, 1)
        sums[optimizer] = copy.deepcopy(result.accumulators)  # the worker uses the memory again
        if optimizer == "ftrl":
            kept = [array.copy() for array in second_states_in(worker._table, 3)]
            worker.adopt(Published(result.parameters, result.accumulators))
            for own, before in zip(second_states_in(worker._table, 3), kept, strict=True):
                np.testing.assert_allclose(own, before, rtol=1e-6)
    assert sums["ftrl"].bias[0] > 100
    np.testing.assert_array_equal(sums["ftrl"].features, sums["adagrad"].features)
    np.testing.assert_allclose(sums["ftrl"].rows[:, 0], sums["adagrad"].rows[:, 0], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "ftrl", "rowwise_adagrad"])
def test_adopt__of_ones_own_results_changes_nothing(rows, optimizer):
    """Where two have the same rows, their average is what each has, and what nobody touched stays as it was drawn."""
    worker, undisturbed = (new_worker(optimizer, world_size=2, scale_rates=False) for _ in range(2))
    half = slices(rows, (600,))[:1]
    server = ParameterServer(worker.setup)
    server.prepare(DIM + 5)
    for one in (worker, undisturbed):
        one.load({"train": half}, DIM + 5)
    drawn = worker.parameters()
    for epoch, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        report, result = worker.train_round(epoch, index, 2)
        undisturbed.train_round(epoch, index, 2)
        assert report.num_rows == result.num_rows == 300
        assert (result.accumulators is None) == (optimizer == "adam" or index == 0)
        worker.adopt(server.average(result, result)[0])
    for one, other, start in zip(worker.parameters(), undisturbed.parameters(), drawn, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)
        np.testing.assert_array_equal(one[DIM:], start[DIM:])
    assert np.abs(worker.parameters().factors - drawn.factors)[:DIM].max() > 1e-3


def test_result__of_a_round_has_the_features_of_its_rows(rows):
    worker = new_worker("adagrad", world_size=2)
    worker.load({"train": slices(rows.rows(0, 8), ())}, DIM)
    seen = set()
    for index in range(4):
        _, result = worker.train_round(0, index, 4)
        own = rows.rows(2 * index, 2 * index + 2)
        expected = set(own.keys[own.indptr[0] : own.indptr[-1]].tolist())
        seen |= expected
        assert set(result.parameters.features.tolist()) == expected
    assert set(result.accumulators.features.tolist()) == seen
    assert set(worker.train_round(1, 0, 1)[1].accumulators.features.tolist()) == seen


def test_resume__with_other_rates_goes_on_from_the_same_parameters(rows):
    """FTRL keeps none: they follow from a sum and the rates."""
    worker, slower = new_worker("ftrl", linear_lr=0.1), new_worker("ftrl", linear_lr=0.02, linear_wd=0.5)
    for one in (worker, slower):
        one.load({"train": slices(rows, ())}, DIM)
    for epoch in range(3):
        worker.train_round(epoch, 0, 1)
    before = worker.parameters()
    slower.resume(worker.state()[0])
    slower.train_round(3, 0, 100)  # a few rows
    assert np.abs(before.linear).max() > 0.05
    np.testing.assert_allclose(slower.parameters().linear, before.linear, atol=0.2 * np.abs(before.linear).max())
