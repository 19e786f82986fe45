"""What the kernels take, in ns per nonzero: ``python tests/benchmarks/kernels.py [--rows N] [--factors K ...]``.

For each number of factors there is scoring, every optimizer with one thread, Adam with as many threads as there are
CPUs (together and racing), and the touch-only kernel and the plain scalar loop of tests/benchmarks/plain.py, on rows
like a click log's. They take turns; the median counts. What matters are the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from rayfm.kernels.batches import Rows, scratch_for  # noqa: E402
from rayfm.kernels.jit import read_only  # noqa: E402
from rayfm.kernels.scoring import score_by_table  # noqa: E402
from rayfm.kernels.tables import CODES, new_table, parameters_in  # noqa: E402
from rayfm.kernels.training import Rule, compiled_for, train_rows  # noqa: E402
from tests.benchmarks import plain, workloads  # noqa: E402

f4 = np.float32


def rule_of(optimizer, num_factors, mini_batch_size):
    rate = 0.001 if optimizer == "adam" else 0.03
    scale = f4(1 / mini_batch_size if optimizer == "adam" else 1)
    decay, none = (f4(0), f4(0), f4(1e-5)), (f4(0),) * 3
    return Rule(
        True, num_factors, mini_batch_size, scale, f4(0), f4(1e-8), f4(1), (rate,) * 3, decay, none, np.ones(1, f4)
    )


class Contestants:
    """What is timed, by name: functions that go over all rows once."""

    def __init__(self, batch, num_factors, mini_batch_size):
        self.batch, self.k, self.size = batch, num_factors, mini_batch_size
        self.order = np.random.default_rng(1).permutation(batch.num_rows)
        self.rows = Rows(batch.indptr, batch.keys, batch.values, batch.labels, np.empty(0, f4))
        self.raw = np.zeros(batch.num_rows, f4)
        self.capacity = mini_batch_size * int(np.diff(batch.indptr).max())

    def table(self, optimizer):
        table = new_table(CODES[optimizer], self.batch.feature_dim, self.k)
        parameters_in(table, self.k).factors[...] = np.random.default_rng(0).normal(
            0, 0.03, (self.batch.feature_dim, self.k)
        )
        return table

    def scoring(self):
        table = self.table("rowwise_adagrad")
        return lambda: score_by_table(self.batch, table, self.k)

    def training(self, optimizer, threads=1, *, racing=False, mini_batch_size=None):
        table = self.table(optimizer)
        scratch = scratch_for(table, threads, mini_batch_size or self.size, self.capacity, racing=racing)
        rule = rule_of(optimizer, self.k, mini_batch_size or self.size)
        code, rest = CODES[optimizer], (self.rows, self.order, rule, 0, table, scratch, self.raw)
        return lambda: train_rows(code, *rest, racing=racing)

    def touching(self):
        table = self.table("adam")
        width, _, sized = compiled_for(table, np.empty(0, np.uint16))
        rows = [read_only(array) for array in (*self.rows[:3], self.order)]
        features, ends = np.zeros(self.batch.num_entries, np.uint32), np.zeros(self.batch.num_rows, np.int64)
        slots = np.zeros(self.batch.feature_dim, np.int32)
        plain.distinct_features(rows[0], rows[1], rows[3], self.size, slots, features, ends)
        state = table.heads, table.factors, sized.step, sized.length, features[: ends.max()], ends
        out = np.zeros(16 + 2 * table.length + 64, f4)
        return lambda: plain.touch_epoch(width, *rows, self.size, *state, out)

    def plainly(self):
        dim = self.batch.feature_dim
        V = np.random.default_rng(0).normal(0, 0.03, (dim, self.k)).astype(f4)
        w = np.zeros(dim + 1, f4)
        states = [(np.zeros_like(w), np.zeros_like(V)) for _ in range(2)]
        slots, features = np.full(dim, -1, np.int32), np.zeros(self.capacity, np.uint32)
        buffers = np.zeros((self.capacity, self.k), f4), np.zeros((self.capacity, 2), f4)
        rows = tuple(read_only(array) for array in self.rows[:4]), read_only(self.order)
        rest = self.size, f4(1 / self.size), 0.001, w, V, *states, slots, features, *buffers
        return lambda: plain.adam_epoch(*rows, *rest)

    def all(self):
        cpus = len(os.sched_getaffinity(0))
        return {
            "touch only": self.touching(),
            "adam": self.training("adam"),
            "plain adam": self.plainly(),
            f"adam, {cpus} threads": self.training("adam", cpus),
            f"adam, {cpus} racing": self.training("adam", cpus, racing=True),
            "adagrad": self.training("adagrad"),
            "adagrad, batch 1": self.training("adagrad", mini_batch_size=1),
            "ftrl": self.training("ftrl"),
            "ftrl, batch 1": self.training("ftrl", mini_batch_size=1),
            "rowwise_adagrad": self.training("rowwise_adagrad"),
            "scoring": self.scoring(),
        }


def measure(contestants, turns, entries):
    times = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, function in contestants.items():
            began = time.perf_counter()
            function()
            if turn:  # in the first, all is compiled and the memory is new
                times[name].append((time.perf_counter() - began) / entries * 1e9)
    return {name: (statistics.median(seen), min(seen)) for name, seen in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--mini-batch-size", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="beginnings of names")
    arguments = parser.parse_args()
    batch = workloads.make("clicks", arguments.rows)
    print(f"{batch.num_rows:,} rows, {batch.num_entries:,} nonzeros, {batch.feature_dim:,} features, load average "
          f"{os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    for k in arguments.factors:
        contestants = Contestants(batch, k, arguments.mini_batch_size).all()
        if arguments.only:
            contestants = {n: f for n, f in contestants.items() if n.startswith(tuple(arguments.only))}
        measured = measure(contestants, arguments.turns, batch.num_entries)
        reference = measured.get("touch only", measured[next(iter(measured))])[0]
        print(f"\nk = {k:<18} ns per nonzero: median, least     / {next(iter(measured))}")
        for name, (median, least) in measured.items():
            print(f"{name:22} {median:24.2f} {least:6.2f} {median / reference:15.2f}", flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
