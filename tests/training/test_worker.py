"""A worker by itself, without Ray: rows that come while it trains are trained on as if they had all been there."""

import copy
from itertools import cycle, pairwise

import numpy as np
import pytest

from rayfm.batch import SparseBatch
from rayfm.hyperparameters import GROUPS, Hyperparameters
from rayfm.kernels.tables import GREW, MOVED, joined, second_states_in
from rayfm.training import averaging, shard
from rayfm.training.messages import Published, WorkerSetup
from rayfm.training.parameter_server import ParameterServer, merged_states
from rayfm.training.shard import BlockSlice
from rayfm.training.worker import Worker

DIM = 40


def drawn_rows():
    """1,100 rows of 0 to 8 features."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 1100)
    keys = np.concatenate([np.sort(rng.choice(DIM, length, replace=False)) for length in lengths])
    values = rng.normal(size=len(keys))
    return SparseBatch.from_csr(np.concatenate([[0], np.cumsum(lengths)]), keys, values, rng.integers(0, 2, 1100))


@pytest.fixture
def rows(monkeypatch):
    """Rows; `ray.get` gives back a block as it is."""
    monkeypatch.setattr(shard.ray, "get", lambda block: block)
    return drawn_rows()


def slices(rows, cuts):
    bounds = [0, *cuts, rows.num_rows]
    pairs = pairwise(bounds)
    return [BlockSlice(rows.rows(start, stop).to_arrow(), 0, stop - start) for start, stop in pairs]


def new_worker(optimizer="adam", threads=2, world_size=1, rank=0, **more):
    task = {"num_factors": 3, "predictor_type": "binary_classifier", "mini_batch_size": 2, "factors_init_sigma": 0.1}
    values = Hyperparameters.of({**task, "optimizer": optimizer, **more})
    worker = Worker(rank, WorkerSetup(values, 7, world_size, 10**9, threads), 0.0)
    worker.warm_up()
    return worker


def same_bits(one, other):
    for array, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(array, expected)


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


class InTurns:
    """A pace that tries all it may."""

    def __init__(self, pace):
        self.choices, self._next = pace.choices, cycle(pace.choices)
        self.taken = []

    @property
    def threads(self):
        self.taken.append(next(self._next))
        return self.taken[-1]

    def took(self, rows, seconds):
        """Learn nothing."""


@pytest.mark.parametrize("optimizer", ["adam", "ftrl", "rowwise_adagrad"])
def test_worker__trains_to_the_same_bits_in_any_number_of_threads(optimizer, monkeypatch):
    """Rows are of very different lengths, mini-batches of an odd number of rows, and the last is short."""
    monkeypatch.setattr(shard.ray, "get", lambda block: block)
    rng = np.random.default_rng(5)
    lengths = np.where(rng.random(2000) < 0.02, DIM, rng.integers(0, 6, 2000))
    keys = np.concatenate([np.sort(rng.choice(DIM, length, replace=False)) for length in lengths])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    many = SparseBatch.from_csr(indptr, keys, rng.normal(size=len(keys)), rng.integers(0, 2, 2000))
    one, five = (new_worker(optimizer, threads, mini_batch_size=321) for threads in (1, 5))
    five._pace = InTurns(five._pace)
    five.prepare(DIM)
    parts = slices(many, (7, 500, 1100))
    for part in parts:
        five.train_arrived([part], is_last=False)  # in four threads
    five.train_arrived([], is_last=True)
    for worker in (one, five):
        worker.load({"train": parts}, DIM)
    one.train_round(0, 0, 1)
    for worker in (one, five):
        for index in range(5):
            worker.train_round(1, index, 5)
    assert five._threads == 5 and five._pace.taken[:4] == [5, 2, 1, 5]
    same_bits(five._parameters, one._parameters)


def test_worker__that_races_does_so_in_all_threads_but_one_while_rows_are_read(rows, monkeypatch):
    from rayfm.kernels import training

    seen = []
    monkeypatch.setattr(training, "train_rows", lambda *data, threads, racing: seen.append((threads, racing)) or 1)
    worker = new_worker(threads=3, hogwild=True)
    worker.prepare(DIM)
    worker.train_arrived(slices(rows, ()), is_last=True)
    worker.load({"train": slices(rows, ())}, DIM)
    worker.train_round(1, 0, 1)
    assert set(seen[-2:]) == {(2, True), (3, True)}


def new_team(optimizer, shards, feature_dim, rounds=1, **more):
    """Workers of so many shards, in one thread, and their server; all know the plan."""
    workers = [new_worker(optimizer, 1, len(shards), rank=rank, **more) for rank in range(len(shards))]
    server = ParameterServer(workers[0].setup)
    server.prepare(feature_dim)
    for worker, shard_rows in zip(workers, shards, strict=True):
        worker.load({"train": slices(shard_rows, ()), "validation": slices(shard_rows, ())}, feature_dim)
    plan, _ = server.plan(rounds, *(worker.counts()[0] for worker in workers))
    for actor in (server, *workers):
        actor.follow(plan)
    return workers, server


def result_of(worker, epoch, index, rounds):
    worker.train_round(epoch, index, rounds)
    [result] = worker.exchange.results(epoch * rounds + index, rounds)
    return result


def train(workers, server, epochs, rounds=1, first=0):
    """Train them as `Team.train_round` does."""
    for epoch in range(first, first + epochs):
        for index in range(rounds):
            results = [copy.deepcopy(result_of(worker, epoch, index, rounds)) for worker in workers]
            published = server.average(*results)
            for worker in workers:
                worker.adopt(published)


def merged_of(workers, server):
    _, results = zip(*(copy.deepcopy(worker.pending()) for worker in workers), strict=True)
    return copy.deepcopy(server.merged(*results)[0])  # the server uses the memory again


def test_counts__are_how_many_entries_a_feature_has(rows):
    worker = new_worker(world_size=2)
    worker.load({"train": slices(rows, (100, 300, 700))[1:3]}, DIM)
    own = rows.keys[rows.indptr[100] : rows.indptr[700]]
    np.testing.assert_array_equal(worker.counts()[0], np.bincount(own, minlength=DIM))
    assert not len(worker.counts()[0])


def test_result__of_ftrl_has_sums_of_squared_gradients(rows):
    """It keeps their roots. At next to no rate the gradients are those of AdaGrad, which keeps the sums."""
    still = {f"{group}_{name}": value for group in GROUPS for name, value in (("lr", 1e-9), ("init_sigma", 0.0))}
    sums = {}
    for optimizer in ("ftrl", "adagrad"):
        [worker, _], _ = new_team(optimizer, [rows, rows], DIM, **still)
        result = result_of(worker, 0, 0, 1)
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
    """Where two have the same rows, their average is what each has, and what nobody had stays as it was drawn."""
    half = rows.rows(0, 600)
    more = {"scale_rates": False, "shuffle": False}
    (workers, server), ([undisturbed, _], _) = (new_team(optimizer, [half] * 2, DIM + 5, 2, **more) for _ in range(2))
    drawn = workers[0].parameters()
    for epoch, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        result = result_of(workers[0], epoch, index, 2)
        assert undisturbed.train_round(epoch, index, 2).num_rows == 300
        assert result.num_rows == 600
        assert (result.accumulators is None) == (optimizer == "adam")
        workers[0].adopt(server.average(result, result))
    for one, other, start in zip(workers[0].parameters(), undisturbed.parameters(), drawn, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)
        np.testing.assert_array_equal(one[DIM:], start[DIM:])
    assert np.abs(workers[0].parameters().factors - drawn.factors)[:DIM].max() > 1e-3


def test_result__has_those_features_of_its_rows_that_others_have_too(rows):
    others = rows.rows(500, 530)
    [worker, _], _ = new_team("adagrad", [rows.rows(0, 8), others], DIM, 4)
    shared = set(others.keys[others.indptr[0] : others.indptr[-1]].tolist())
    seen, told = set(), set()
    for index in range(4):
        result = result_of(worker, 0, index, 4)
        own = rows.rows(2 * index, 2 * index + 2)
        expected = set(own.keys[own.indptr[0] : own.indptr[-1]].tolist()) & shared
        seen |= expected
        assert set(result.parameters.features.tolist()) == expected
        told |= set(result.accumulators.features.tolist())
        assert told <= seen
    for index in range(4):  # each feature's sums in one round of four
        told |= set(result_of(worker, 1, index, 4).accumulators.features.tolist())
    assert told == seen


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "ftrl", "rowwise_adagrad"])
def test_merged__features_of_one_worker_are_trained_as_if_it_were_alone(rows, optimizer):
    """Two with nothing in common but a bias that stands still make what two runs of one worker each make."""
    half, still = DIM // 2, {"bias_lr": 0.0, "bias_init_method": "constant", "bias_init_value": 0.0}
    lower, upper = (
        SparseBatch.from_csr(*csr, rows.labels[:1000])
        for csr in (_columns(rows.rows(0, 1000), 0, half), _columns(rows.rows(0, 1000), half, DIM))
    )
    workers, server = new_team(optimizer, [lower, upper], DIM, 3, **still)
    train(workers, server, 2, 3)
    together = workers[1].parameters(merged_of(workers, server))
    for shard_rows, own in ((lower, slice(0, half)), (upper, slice(half, DIM))):
        alone = new_worker(optimizer, 1, **still)
        alone.load({"train": slices(shard_rows, ())}, DIM)
        for epoch in range(2):
            for index in range(3):
                alone.train_round(epoch, index, 3)
        np.testing.assert_allclose(together.linear[own], alone.parameters().linear[own], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(together.factors[own], alone.parameters().factors[own], rtol=1e-5, atol=1e-7)
    assert np.abs(together.linear).max() > 0.01


def _columns(batch, first, end):
    """The CSR arrays of the features from `first` to before `end`."""
    keys, values = batch.keys[: batch.indptr[-1]], batch.values[: batch.indptr[-1]]
    own = (keys >= first) & (keys < end)
    ends = np.concatenate([[0], np.cumsum(own)])[batch.indptr]
    return ends, keys[own], values[own]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rowwise_adagrad"])
def test_exchange__loses_nothing_where_a_worker_has_no_rows_in_a_round(rows, optimizer, monkeypatch):
    """What a worker does not say is new to the others is, always, what the server has."""
    monkeypatch.setattr(averaging, "FEW", 0)
    monkeypatch.setattr(averaging, "TOUCHES", 300)
    more = {"mini_batch_size": 200}
    workers, server = new_team(optimizer, [rows.rows(0, 400), rows.rows(400, 1000)], DIM, 3, **more)
    seen = 0  # how often the worker without rows had something to say
    for turn in range(9):
        results = [copy.deepcopy(result_of(worker, turn // 3, turn % 3, 3)) for worker in workers]
        assert turn % 3 or workers[0]._shard.rows_of_round(0, 3) == (0, 0)
        before = server.state()[0]["rows0"].reshape(DIM, -1).astype(float)
        published = server.average(*results)
        state = server.state()[0]
        for feature, row in zip(published.parameters.features, published.parameters.rows, strict=True):
            moves = [
                share * (result.parameters.rows[result.parameters.features == feature] - before[feature])
                for share, result in zip((0.4, 0.6), results, strict=True)
            ]
            count = sum(len(move) for move in moves)
            factor = 2 * (count / workers[0].exchange.plan.holders[feature]) ** averaging.REACH[optimizer] / count
            expected = before[feature] + factor * np.concatenate(moves).sum(0)
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)
            seen += turn % 3 == 0 and len(moves[0])
        for worker in workers:
            worker.adopt(published)
            kinds = [(MOVED, worker.parameters(), "rows0")]
            if optimizer != "adam":
                kinds.append((GREW, second_states_in(worker._table, 3), "rows1"))
            for flag, (_, linear, factors), name in kinds:
                told = worker._scratch.marks & flag == 0
                expected = state[name].reshape(DIM, -1)[told]
                assert len(expected)
                np.testing.assert_array_equal(np.column_stack([linear, factors])[told], expected)
    assert seen > 5


@pytest.mark.parametrize("optimizer", ["adam", "ftrl"])
def test_merged__is_the_same_for_all_and_training_goes_on_as_if_nobody_had_looked(rows, optimizer, monkeypatch):
    monkeypatch.setattr(averaging, "FEW", 0)
    monkeypatch.setattr(averaging, "TOUCHES", 900)  # some features wait for epochs
    shards = [rows.rows(0, 500), rows.rows(500, 1100)]
    (workers, server), (unseen, its_server) = (new_team(optimizer, shards, DIM, 2) for _ in range(2))
    for epoch in range(3):
        train(workers, server, 1, 2, epoch)
        train(unseen, its_server, 1, 2, epoch)
        merged = merged_of(workers, server)
        assert len(merged.parameters.features) > 5
        one, other = (worker.parameters(merged) for worker in workers)
        same_bits(one, other)
        assert not np.array_equal(one.factors, workers[0].parameters().factors)
        parts = [workers[index % 2].parameters(merged, part=(index, 3)) for index in range(3)]
        same_bits(joined(parts), one)
        sums, _ = workers[0].evaluate("validation", merged)
        assert sums.values() == workers[0].evaluate("validation", *parts)[0].values()
    for looked_at, other in zip([*workers, server], [*unseen, its_server], strict=True):
        for name, value in other.state()[0].items():
            np.testing.assert_array_equal(looked_at.state()[0][name], value)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "ftrl", "rowwise_adagrad"])
def test_merged_states__go_on_from_the_merged_model(rows, optimizer, monkeypatch):
    """As if the workers had told each other everything: all have it, nothing is pending, and FTRL stays there."""
    monkeypatch.setattr(averaging, "FEW", 0)
    monkeypatch.setattr(averaging, "TOUCHES", 900)
    shards = [rows.rows(0, 500), rows.rows(500, 1000)]
    workers, server = new_team(optimizer, shards, DIM, 2)
    train(workers, server, 2, 2)
    expected = workers[0].parameters(merged_of(workers, server))
    states = [worker.state()[0] for worker in workers]
    told, [server_told] = merged_states(states, [server.state()[0]], workers[0].setup.hyperparameters)
    [*others, third], new_server = new_team(
        optimizer, [rows.rows(0, 300), rows.rows(300, 600), rows.rows(600, 1100)], DIM
    )
    new_server.resume(server_told)
    for worker, state in zip((*others, third), (*told, told[0]), strict=True):
        worker.resume({**state, "marks": np.empty(0, np.uint16), "epoch_sums": [], "epoch_batches": 0})
        same_bits(worker.parameters(), expected)
        assert not len(worker.exchange.pending()[0].parameters.features)
    rows_of_server = new_server.state()[0]["rows0"].reshape(DIM, -1)
    np.testing.assert_allclose(rows_of_server[:, 0], expected.linear, rtol=1e-5, atol=1e-7)
    again = [{**state, "marks": np.empty(0, np.uint16)} for state in told]
    assert merged_states(again, [server_told], workers[0].setup.hyperparameters) == (again, [server_told])
    third.train_round(2, 0, 300)  # next to nothing: no term of FTRL is left as it was for other parameters
    np.testing.assert_allclose(third.parameters().linear, expected.linear, atol=0.2 * np.abs(expected.linear).max())


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
