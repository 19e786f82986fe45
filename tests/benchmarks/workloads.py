"""Synthetic click logs for the benchmarks: skewed features, labels from a planted factorization machine.

`clicks` is like Criteo's logs: 13 numbers and 26 categories a row, 1,000,000 features. `wide` has 20 categories of
500,000 values each. The same name and number of rows always give the same data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rayfm.batch import SparseBatch

PLANTED_FACTORS = 8


class Workload(NamedTuple):
    """How many rows there are when nobody says, how their features are made up, and how they are trained."""

    rows: int
    numbers: int
    categories: tuple[int, ...]  # how many values each has
    skew: float  # exponent of the frequency of a category's values by their rank
    positives: float
    num_factors: int

    @property
    def feature_dim(self):
        return self.numbers + sum(self.categories)


def _spread(count, total, smallest=4):
    """So many sizes from few to very many values, as the columns of a click log have, of `total` together."""
    sizes = np.geomspace(smallest, total, count)
    sizes = np.maximum(smallest, sizes * total / sizes.sum()).astype(int)
    sizes[-1] += total - sizes.sum()
    return tuple(sizes.tolist())


WORKLOADS = {
    "clicks": Workload(1_000_000, 13, _spread(26, 1_000_000 - 13), 1.1, 0.25, 16),
    "wide": Workload(200_000, 0, (500_000,) * 20, 1.0, 0.4, 64),
}


def make(name, rows=None, seed=0):
    """Rows of a workload as a `SparseBatch` with labels."""
    load = WORKLOADS[name]
    rows = rows or load.rows
    rng = np.random.default_rng(seed)
    fields = load.numbers + len(load.categories)
    keys, values = np.empty((rows, fields), np.uint32), np.ones((rows, fields), np.float32)
    for column in range(load.numbers):
        keys[:, column] = column
        values[:, column] = np.log1p(rng.poisson(np.exp(rng.normal(1.0, 1.2, rows)))) / 4 + 0.01
    first = load.numbers
    for column, size in enumerate(load.categories, load.numbers):
        frequency = np.cumsum(np.arange(1, size + 1) ** -load.skew)
        rank = np.minimum(np.searchsorted(frequency, rng.random(rows) * frequency[-1]), size - 1)
        keys[:, column] = first + rng.permutation(size)[rank]
        first += size
    raw = _planted(keys, values, load.feature_dim, rng) + rng.normal(0, 0.3, rows)
    raw -= np.quantile(raw, 1 - load.positives)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-2 * raw))).astype(np.float32)
    indptr = np.arange(rows + 1, dtype=np.int64) * fields
    return SparseBatch(indptr, keys.ravel(), values.ravel(), labels, feature_dim=load.feature_dim)


def _planted(keys, values, feature_dim, rng):
    """Raw scores of a machine with drawn parameters, their two parts of unit deviation each."""
    linear = rng.standard_normal(feature_dim, np.float32)
    factors = rng.standard_normal((feature_dim, PLANTED_FACTORS), np.float32)
    first, second = np.empty(len(keys)), np.empty(len(keys))
    for start in range(0, len(keys), 20_000):
        part = slice(start, start + 20_000)
        first[part] = (linear[keys[part]] * values[part]).sum(1)
        products = factors[keys[part]] * values[part][:, :, None]
        second[part] = ((products.sum(1) ** 2) - (products**2).sum(1)).sum(1)
    return first / first.std() + second / second.std()
