"""What travels between workers and the parameter server, against plain indexing."""

import numpy as np
import pytest

from rayfm.kernels import exchange
from rayfm.kernels.exchange import Combiner, FeatureRows, Memory, find, gather, scatter, take_due
from rayfm.kernels.tables import (
    CODES,
    new_table,
    parameter_places,
    parameters_in,
    second_state_places,
    second_states_in,
)

DIM = 50


def filled_table(optimizer, num_factors):
    table = new_table(CODES[optimizer], DIM, num_factors)
    table.heads[:] = np.random.default_rng(0).normal(size=len(table.heads))
    table.bias[:] = [7, 8, 9, 0]
    return table


@pytest.mark.parametrize("num_factors", [1, 5, 8, 17, 40])
@pytest.mark.parametrize("optimizer", ["adam", "ftrl", "rowwise_adagrad"])
@pytest.mark.parametrize("chosen", [[], [0, 1, 7, 30, 49], range(DIM)], ids=["none", "some", "all"])
def test_gather__and_scatter_move_what_the_views_show_and_nothing_else(optimizer, num_factors, chosen):
    source, target = filled_table(optimizer, num_factors), filled_table(optimizer, num_factors)
    target.heads[:] = 0
    features = np.array(chosen, np.uint32)
    pairs = (
        (parameter_places(num_factors), parameters_in),
        (second_state_places(source, num_factors), second_states_in),
    )
    for places, views_in in pairs:
        rows, views = gather(source, places, features, Memory()), views_in(source, num_factors)
        np.testing.assert_array_equal(rows.bias, views.bias)
        np.testing.assert_array_equal(rows.rows[:, 0], views.linear[features])
        np.testing.assert_array_equal(rows.rows[:, 1:], views.factors[features])
        target.bias[:] = 0
        scatter(target, places, rows)
        copied = views_in(target, num_factors)
        np.testing.assert_array_equal(copied.bias, views.bias)
        np.testing.assert_array_equal(copied.linear[features], views.linear[features])
        np.testing.assert_array_equal(copied.factors[features], views.factors[features])
        assert np.count_nonzero(target.heads) == rows.rows.size
        target.heads[:] = 0


def test_combine__moves_each_feature_by_those_who_have_it(monkeypatch):
    """To the same bits in any number of threads."""
    rng = np.random.default_rng(1)
    start, width = rng.normal(size=(DIM, 4)).astype("f4"), 4
    holders = rng.integers(1, 4, DIM).astype(np.uint16)
    combiners = []
    for threads in (3, 1):
        monkeypatch.setattr(exchange.os, "sched_getaffinity", lambda process, threads=threads: range(threads))
        combiners.append(Combiner(np.ones(1, np.float32), start.copy(), holders))
    current, bias = start.astype(float), 1.0
    for _ in range(3):
        results = [
            FeatureRows(
                np.sort(rng.choice(DIM, size, replace=False)).astype(np.uint32),
                rng.normal(size=1).astype("f4"),
                rng.normal(size=(size, width)).astype("f4"),
            )
            for size in (20, 0, 33)
        ]
        shares, factors = [0.5, 0.2, 0.3], np.array([[0, 3, 2, 1], [0, 1, 0.7, 0.6]], np.float32)
        shown = combiners[0].combine(results, shares, factors, is_kept=False)
        shown = FeatureRows(*(array.copy() for array in shown))  # the next one uses the memory again
        combined, alone = (combiner.combine(results, shares, factors) for combiner in combiners)
        for one, other in zip(combined, shown, strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(combined, alone, strict=True):
            np.testing.assert_array_equal(one, other)
        moves, counts = np.zeros((DIM, width)), np.zeros(DIM, int)
        for result, share in zip(results, shares, strict=True):
            moves[result.features] += share * (result.rows - current[result.features])
            counts[result.features] += 1
        current += (factors[0][counts] * factors[1][holders])[:, None] * moves
        bias += 0.6 * sum(share * (result.bias[0] - bias) for result, share in zip(results, shares, strict=True))
        np.testing.assert_array_equal(combined.features, np.flatnonzero(counts))
        np.testing.assert_allclose(combined.rows, current[combined.features], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(combined.bias, bias, rtol=1e-5)


def test_find__lists_the_features_of_a_mask():
    flags = np.random.default_rng(2).integers(0, 2**16, 1000).astype(np.uint16)
    for mask in (1, 2**15, 3):
        features = np.empty(1000, np.uint32)
        count = find(flags, mask, features)
        np.testing.assert_array_equal(features[:count], np.flatnonzero(flags & mask))


def test_memory__is_used_again_unless_it_is_too_small():
    memory = Memory()
    first = memory.rows(4, 3)
    assert first.shape == (4, 3)
    assert np.shares_memory(memory.rows(2, 5), first)
    assert memory.rows(5, 3).shape == (5, 3)


def test_take_due__takes_each_feature_that_is_flagged_once_in_its_turns():
    rng = np.random.default_rng(3)
    features = np.sort(rng.choice(1000, 300, replace=False)).astype(np.uint32)
    exponents = rng.integers(0, 4, 300).astype(np.uint8)
    for least in (0, 2):
        marks = np.full(1000, 2**15 | 2**14 | 5, np.uint16)
        marks[features[::7]] = 5 | 2**14
        due, taken = np.empty(300, np.uint32), []
        for turn in range(64, 72):
            taken.append(due[: take_due(features, exponents, least, turn, marks, 2**15, due)].copy())
            marks[taken[-1]] |= 2**15  # updated again
        for exponent in range(4):
            alike = np.setdiff1d(features[exponents == exponent], features[::7])
            for start in range(0, 8, 2 ** max(exponent, least)):
                turns = np.concatenate(taken[start : start + 2 ** max(exponent, least)])
                assert np.isin(turns, alike).sum() == len(alike)
        assert not np.isin(np.concatenate(taken), features[::7]).any()
        for turn in range(8):
            take_due(features, exponents, least, turn, marks, 2**15, due)
        assert set(marks[features]) == {5 | 2**14}
        assert set(np.delete(marks, features)) == {2**15 | 2**14 | 5}
