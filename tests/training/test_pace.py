"""In how many threads a worker trains."""

from rayfm.training.pace import FIRST_TRIALS, TRIED_AGAIN, Pace


class Machine:
    """Says how long rows take in so many threads, and counts the calls of each."""

    def __init__(self, **rates):
        self.rates = {int(name[1:]): rate for name, rate in rates.items()}
        self.calls = []

    def train(self, pace, calls, rows=100_000):
        for _ in range(calls):
            threads = pace.threads()
            self.calls.append(threads)
            pace.took(threads, rows, rows / self.rates[threads])


def test_threads__are_those_that_train_fastest():
    for rates, best in (
        ({"_4": 4e6, "_2": 2e6, "_1": 1e6}, 4),
        ({"_4": 1e6, "_2": 2e6, "_1": 1.9e6}, 2),
        ({"_4": 1e6, "_2": 1.5e6, "_1": 2e6}, 1),
    ):
        pace, machine = Pace(4), Machine(**rates)
        machine.train(pace, 3 * FIRST_TRIALS + 40)
        assert machine.calls[: 3 * FIRST_TRIALS] == [4, 2, 1] * FIRST_TRIALS
        assert set(machine.calls[3 * FIRST_TRIALS :]) == {best}


def test_threads__follow_a_machine_that_changes_and_seldom_try_what_is_slower():
    pace, machine = Pace(2), Machine(_2=2e6, _1=1e6)
    machine.train(pace, 20 * TRIED_AGAIN)
    assert machine.calls.count(1) <= FIRST_TRIALS + 20
    machine.rates = {2: 0.5e6, 1: 1e6}  # somebody else wants a core
    machine.train(pace, 5)
    assert machine.calls[-1] == 1
    machine.rates = {2: 2e6, 1: 1e6}
    machine.train(pace, 4 * TRIED_AGAIN)
    assert machine.calls[-1] == 2


def test_threads__one_slow_call_of_the_best_changes_nothing():
    pace, machine = Pace(2), Machine(_2=2e6, _1=1e6)
    machine.train(pace, 10)
    pace.took(2, 100_000, 10.0)
    assert pace.threads() == 2


def test_threads__of_what_is_too_short_to_be_measured_are_the_most():
    pace, machine = Pace(2), Machine(_2=1e6, _1=2e6)
    machine.train(pace, 100, rows=1000)
    assert set(machine.calls) == {2}


def test_threads__never_are_more_than_allowed():
    allowed = ((4, 3), (4, 1), (2, 1), (1, 0), (6, 5))
    assert [Pace(most).threads(few) for most, few in allowed] == [2, 1, 1, 1, 3]
