"""The actors of a run, as its controller commands them."""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayfm.training import cluster
from rayfm.training.messages import WorkerSetup
from rayfm.training.parameter_server import ParameterServer
from rayfm.training.worker import Worker

ANSWER_S = 5.0
"""How long a server may take to say whom it waits for."""


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
        options = {"num_cpus": 0, "scheduling_strategy": "SPREAD", "max_concurrency": self._setup.world_size + 1}
        return ray.remote(ParameterServer).options(**options).remote(self._setup)

    def check_places(self) -> None:
        """Raise `ResourceError` when the place of a worker was lost with its node, and there is no other."""
        self._missing_since = cluster.check_places(self._group, self._request, self._missing_since)

    def train_round(self, epoch: int, index: int, rounds: int) -> list[Any]:
        """Let the workers train on a round, and go on from what the servers make of it; returns the calls."""
        return [worker.train_round.remote(epoch, index, rounds) for worker in self.workers]

    def missing(self) -> str:
        """Return whom the servers wait for in a round, in words; nothing when there is nobody to ask."""
        try:
            ranks = ray.get([server.missing.remote() for server in self.servers], timeout=ANSWER_S)
        except ray.exceptions.RayError:
            return " The parameter server does not answer."
        missing = sorted({rank for of_server in ranks for rank in of_server})
        return f" The parameter server has heard nothing of ranks {missing}." if missing else ""

    def plan(self, rounds: int) -> list[Any]:
        """Let all know who has which features, and when they are exchanged; returns the calls."""
        counts, _ = zip(*(worker.counts.options(num_returns=2).remote() for worker in self.workers), strict=True)
        plan, _ = self.servers[0].plan.options(num_returns=2).remote(rounds, *counts)
        told = [worker.follow.remote(plan, self.servers) for worker in self.workers]
        return told + [server.follow.remote(plan) for server in self.servers]

    def merged(self) -> tuple[list[Any], list[Any]]:
        """Let the servers combine what is pending, without consequences; returns references to that, and the calls."""
        returns = 1 + len(self.servers)
        calls = [worker.pending.options(num_returns=returns).remote() for worker in self.workers]
        _, *results = zip(*calls, strict=True)
        shown = [
            server.merged.options(num_returns=2).remote(*of_ranks)
            for server, of_ranks in zip(self.servers, results, strict=True)
        ]
        merged, done = zip(*shown, strict=True)
        return list(merged), list(done)

    def parameters(self, merged: list[Any]) -> list[Any]:
        """Return references to the parameters of the run, a range of the features from each worker."""
        count = len(self.workers)
        return [worker.parameters.remote(*merged, part=(index, count)) for index, worker in enumerate(self.workers)]

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
