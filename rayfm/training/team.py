"""The actors of a run, as its controller commands them."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayfm.training import cluster
from rayfm.training.messages import WorkerSetup
from rayfm.training.parameter_server import ParameterServer
from rayfm.training.worker import Worker


class RoundCalls(NamedTuple):
    """The calls of a round: of each worker for its report, of each server, and of each worker to adopt the average."""

    reports: list[Any]
    averaged: list[Any]
    adopted: list[Any]


class Team:
    """The workers, and the parameter servers unless there is one worker alone.

    Parameters
    ----------
    group, cpus
        Placement group with a place for each worker, and the CPUs of one.
    request
        What was asked for.
    """

    def __init__(self, group: Any, cpus: float, request: cluster.WorkerRequest) -> None:
        self._group, self._cpus, self._request = group, cpus, request
        self._missing_since: float | None = None
        self.workers: list[Any] = []
        self.ready: list[Any] = []
        self.servers: list[Any] = []

    @property
    def threads(self) -> int:
        """How many threads each worker has CPUs for: those of this machine where it is shared, else its own."""
        machine = min(len(os.sched_getaffinity(0)), int(cluster.cluster_cpus()))  # Ray knows a container's limit
        return max(1, machine // self._request.count if self._request.share else int(self._cpus))

    def start(self, setup: WorkerSetup) -> None:
        """Start one worker per place of the placement group, and a server; `ready` is when they have compiled."""
        self._setup = setup
        if setup.world_size > 1:
            self.servers = [self._new_server()]
        worker_class = ray.remote(Worker)
        self.workers = [
            worker_class.options(
                num_cpus=self._cpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, rank),
            ).remote(rank, setup, time.time())
            for rank in range(self._request.count)
        ]
        self.ready = [worker.warm_up.remote() for worker in self.workers]

    def prepare_servers(self, count: int, feature_dim: int) -> list[Any]:
        """Let so many servers, spread over the nodes, draw the parameters; returns the calls."""
        self.servers += [self._new_server() for _ in range(count - len(self.servers))]
        return [server.prepare.remote(feature_dim, index, count) for index, server in enumerate(self.servers)]

    def _new_server(self) -> Any:
        return ray.remote(ParameterServer).options(num_cpus=0, scheduling_strategy="SPREAD").remote(self._setup)

    def check_places(self) -> None:
        """Raise `ResourceError` when the place of a worker was lost with its node, and there is no other."""
        self._missing_since = cluster.check_places(self._group, self._request, self._missing_since)

    def train_round(self, epoch: int, index: int, rounds: int) -> RoundCalls:
        """Let the workers train on a round, and go on from its average."""
        returns = 1 + len(self.servers)
        calls = [
            worker.train_round.options(num_returns=returns).remote(epoch, index, rounds) for worker in self.workers
        ]
        if not self.servers:
            return RoundCalls(calls, [], [])
        reports, *results = zip(*calls, strict=True)  # for each server those of all ranks
        done = [
            server.average.options(num_returns=2).remote(*of_ranks)
            for server, of_ranks in zip(self.servers, results, strict=True)
        ]
        published, averaged = zip(*done, strict=True)
        adopted = [worker.adopt.remote(*published) for worker in self.workers]
        return RoundCalls(list(reports), list(averaged), adopted)

    def state(self) -> tuple[list[Any], list[Any]]:
        """Let the actors copy what `resume` needs; returns references to that, and the calls."""
        states, calls = zip(*(actor.state.options(num_returns=2).remote() for actor in self._actors), strict=True)
        return list(states), list(calls)

    def resume(self, state: list[Any]) -> list[Any]:
        """Let actors that have been prepared go on from a state; returns the calls."""
        return [actor.resume.remote(part) for actor, part in zip(self._actors, state, strict=True)]

    def restart(self) -> None:
        """End the actors, and start new ones at their places."""
        self.dismiss()
        self.start(self._setup)

    @property
    def _actors(self) -> list[Any]:
        return [*self.workers, *self.servers]

    def dismiss(self) -> None:
        """End the actors at once, whatever they are doing."""
        for actor in self._actors:
            ray.kill(actor)
        self.workers, self.ready, self.servers = [], [], []
