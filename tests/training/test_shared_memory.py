"""Rows told by handles: another process sees them where they lie, and nobody takes a stranger's file for them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from rayfm.kernels.exchange import FeatureRows
from rayfm.training import parameter_server, shared_memory
from rayfm.training import worker as worker_module
from rayfm.training.messages import RoundResult
from rayfm.training.shared_memory import Reader, SharedMemory, UnreachableError, with_arrays, with_handles
from tests.training.test_worker import drawn_rows, new_team, new_worker, same_bits

pytestmark = pytest.mark.skipif(not shared_memory.IS_SHARED, reason="this system has no memfd_create")

READER = """
import pickle, sys
from rayfm.training.shared_memory import Reader
reader = Reader()
for line in sys.stdin:
    rows = reader.arrays(pickle.loads(bytes.fromhex(line)))
    print(rows.features.tolist(), rows.rows.tolist(), rows.rows.flags.writeable, flush=True)
"""


def filled(memory, count, width, first=0.0):
    features, values = memory.features(count), memory.rows(count, width)
    features[:] = np.arange(count) * 3
    values[:] = np.arange(count * width).reshape(count, width) + first
    return FeatureRows(features, np.ones(1, np.float32), values)


def test_handles__show_another_process_the_same_memory_however_it_grows():
    import pickle

    memory = SharedMemory()
    with subprocess.Popen([sys.executable, "-c", READER], stdin=-1, stdout=-1, text=True) as reader:
        for count, width, first in ((3, 2, 0.0), (3, 2, 5.0), (0, 2, 0.0), (2, 2, 1.0), (5000, 3, 7.0)):
            own = filled(memory, count, width, first)
            message = pickle.dumps(memory.handles(own))
            assert len(message) < 500
            reader.stdin.write(message.hex() + "\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{own.features.tolist()} {own.rows.tolist()} {count == 0}\n"
        reader.stdin.close()


def test_handles__of_a_part_show_that_part():
    memory = SharedMemory()
    whole = filled(memory, 10, 3)
    part = whole._replace(features=whole.features[4:9], rows=whole.rows[4:9])
    seen = Reader().arrays(memory.handles(part))
    same_bits(seen, part)
    with pytest.raises(ValueError, match="read-only"):
        seen.rows[0, 0] = 1


def test_arrays__refuses_what_is_no_memory_of_ours(tmp_path):
    memory = SharedMemory()
    handles = memory.handles(filled(memory, 4, 2))
    with subprocess.Popen(["true"]) as ended:
        pass
    with open(tmp_path / "file", "wb") as file:
        for wrong in (
            {"pid": ended.pid},
            {"descriptor": file.fileno()},
            {"descriptor": 10**6},
            {"token": b"of another machine"[:16]},
        ):
            with pytest.raises(UnreachableError):
                Reader().arrays(handles._replace(rows=handles.rows._replace(**wrong)))


def test_shared_memory__leaves_nothing_open_that_is_not_used():
    memory = SharedMemory()
    before = len(os.listdir("/proc/self/fd"))
    for count in (10, 100, 1000, 10_000):
        filled(memory, count, 2)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * 2  # a descriptor for each, and the map's own


@pytest.fixture
def rows(monkeypatch):
    """Rows, and a Ray whose calls run in threads and whose objects are what they refer to."""

    def get(value):
        if isinstance(value, list):
            return [get(each) for each in value]
        return value.result() if isinstance(value, Future) else value

    monkeypatch.setattr(parameter_server.ray, "put", lambda value: value)
    monkeypatch.setattr(worker_module.ray, "get", get)
    return drawn_rows()


class Remote:
    """An actor's methods as Ray offers them, each call in a thread."""

    def __init__(self, actor, pool):
        self._actor, self._pool = actor, pool

    def __getattr__(self, name):
        method = getattr(self._actor, name)
        return type("Method", (), {"remote": staticmethod(lambda *given: self._pool.submit(method, *given))})


@pytest.mark.parametrize("optimizer", ["adagrad", "ftrl"])
@pytest.mark.parametrize("near", [[[True]] * 2, [[False]] * 2, [[True], [False]], [[True, False], [False, True]]])
def test_exchange__comes_to_the_same_whether_workers_are_reached_or_not(rows, monkeypatch, near, optimizer):
    shards, count = [rows.rows(0, 500), rows.rows(500, 1100)], len(near[0])
    (workers, _), (others, its_server) = (new_team(optimizer, shards, 40, 2) for _ in range(2))
    servers = [parameter_server.ParameterServer(workers[0].setup) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        for index, server in enumerate(servers):
            server.prepare(40, index, count)
            server.follow(workers[0].exchange.plan)
        for worker, are_near in zip(workers, near, strict=True):
            worker.follow(worker.exchange.plan, [Remote(server, pool) for server in servers])
            assert all(server.is_near for server in worker.exchange.servers)
            worker.exchange.servers = [
                server._replace(is_near=each) for server, each in zip(worker.exchange.servers, are_near, strict=True)
            ]
        for index in range(4):
            for done in [pool.submit(worker.train_round, index // 2, index % 2, 2) for worker in workers]:
                done.result(60)
    for index in range(4):
        for worker in others:
            worker.train_round(index // 2, index % 2, 2)
        results = [worker.exchange.results(index, 2)[0] for worker in others]
        published = its_server.average(*results)
        for worker in others:
            worker.adopt(published)
    for one, other in zip(workers, others, strict=True):
        same_bits(one.parameters(), other.parameters())


def test_follow__finds_out_whether_a_server_is_reached(rows, monkeypatch):
    [worker, _], server = new_team("adam", [rows, rows], 40)

    def fail(handle):
        raise UnreachableError

    with ThreadPoolExecutor(2) as pool:
        worker.follow(worker.exchange.plan, [Remote(server, pool)])
        assert [each.is_near for each in worker.exchange.servers] == [True]
        assert shared_memory.has_handles(worker.exchange.pending()[0])
        monkeypatch.setattr(shared_memory, "_mapped", fail)
        server._reader = Reader()
        worker.follow(worker.exchange.plan, [Remote(server, pool)])
        assert [each.is_near for each in worker.exchange.servers] == [False]
        assert not shared_memory.has_handles(worker.exchange.pending()[0])


def test_reaches__answers_many_workers_at_once():
    setup = new_worker(world_size=8).setup
    for _ in range(20):
        server, together = parameter_server.ParameterServer(setup), threading.Barrier(8)

        def ask(memory, server=server, together=together):
            probe = memory.probe()
            together.wait(10)
            return server.reaches(probe)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [SharedMemory() for _ in range(8)]))
        assert all(shared_memory.reaches(Reader(), answer) for answer in answers)


def test_exchange__raises_at_all_who_wait_when_it_fails_and_tells_of_whom_it_has_heard_nothing(rows, monkeypatch):
    [worker, _], server = new_team("adam", [rows, rows], 40)
    worker.train_round(0, 0, 1)
    [result] = worker.exchange.results(0, 1)
    assert server.missing() == []
    raised = []

    def fail(*results):
        raise MemoryError("no room")

    def wait():
        try:
            server.exchange(1, result)
        except MemoryError as error:
            raised.append(error)

    monkeypatch.setattr(server, "average", fail)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while server.missing() != [0]:
        assert waiting.is_alive()
    with pytest.raises(MemoryError, match="no room"):
        server.exchange(0, result)
    waiting.join(20)
    assert len(raised) == 1
    assert server.missing() == []


def test_messages__are_the_same_with_handles_and_with_arrays():
    memories = SharedMemory(), SharedMemory()
    message = RoundResult(7, filled(memories[0], 5, 2), filled(memories[1], 3, 2, 9.0))
    back = with_arrays(with_handles(message, memories), Reader())
    same_bits(back.parameters, message.parameters)
    same_bits(back.accumulators, message.accumulators)
    assert with_arrays(message, Reader()).parameters is message.parameters
