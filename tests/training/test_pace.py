"""In how many threads a worker trains."""

import pytest

from rayfm.training.pace import LAST_TRIAL, MEASURED_S, Pace


class Machine:
    """Trains so many rows a second in so many threads, and counts the calls and the time."""

    def __init__(self, rates):
        self.rates, self.calls, self.seconds = rates, [], 0.0

    def train(self, pace, calls, rows=100_000):
        for _ in range(calls):
            seconds = rows / self.rates[pace.threads]
            self.calls.append(pace.threads)
            self.seconds += seconds
            pace.took(rows, seconds)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({4: 4e6, 2: 2e6, 1: 1e6}, 4),
        ({4: 1e6, 2: 2e6, 1: 1.9e6}, 2),
        ({4: 1e6, 2: 1.5e6, 1: 2e6}, 1),
        ({1: 1e6}, 1),
        ({6: 3e6, 3: 4e6, 1: 2e6}, 3),
    ],
)
def test_threads__are_those_that_train_fastest(rates, best):
    pace, machine = Pace(max(rates)), Machine(rates)
    assert pace.choices == list(rates)
    machine.train(pace, 100)
    assert machine.calls[-80:].count(best) >= 74


@pytest.mark.parametrize("calls", [15, 100, 1000])
def test_threads__that_are_slower_are_tried_so_seldom_that_it_costs_little(calls):
    pace, machine = Pace(16), Machine({16: 16e6, 8: 8e6, 4: 4e6, 2: 2e6, 1: 1e6})
    machine.train(pace, calls)
    assert machine.seconds * 16e6 / 100_000 < calls * {15: 1.25, 100: 1.1, 1000: 1.03}[calls]


def test_threads__follow_a_machine_that_changes():
    pace, machine = Pace(2), Machine({2: 2e6, 1: 1e6})
    machine.train(pace, 10 * LAST_TRIAL)
    machine.rates = {2: 0.5e6, 1: 1e6}  # somebody else wants a core
    machine.train(pace, LAST_TRIAL + 10)
    assert machine.calls[-1] == 1
    machine.rates = {2: 2e6, 1: 1e6}
    machine.train(pace, 2 * LAST_TRIAL)
    assert machine.calls[-1] == 2


def test_threads__one_slow_call_of_the_best_changes_nothing():
    pace, machine = Pace(2), Machine({2: 2e6, 1: 1e6})
    machine.train(pace, 10)
    while pace.threads == 1:
        machine.train(pace, 1)
    pace.took(100_000, 10.0)
    machine.train(pace, 10)
    assert machine.calls[-1] == 2


def test_took__short_calls_are_measured_together():
    pace, machine = Pace(2), Machine({2: 1e6, 1: 2e6})
    rows = int(1e6 * MEASURED_S / 10)
    machine.train(pace, 20, rows)
    assert set(machine.calls) == {2}
    machine.train(pace, 200, rows)
    assert machine.calls[-1] == 1


def test_threads__that_are_not_free_stay_what_they_are():
    pace, machine = Pace(4, is_free=False), Machine({4: 1e6})
    machine.train(pace, 2 * LAST_TRIAL)
    assert pace.choices == [4] and set(machine.calls) == {4}
