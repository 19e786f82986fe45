"""The Ray cluster a command runs on: the one it is told, or an embedded one of its own."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group

from rayfm.errors import RayfmError, ResourceError, WorkerError

RESERVATION_TIMEOUT_S = 120.0
KNOCK_TIMEOUT_S = 5.0


def connect(address: str | None = None) -> None:
    """Join the cluster at `address` or ``RAY_ADDRESS``; start an embedded Ray when neither is given.

    Does nothing when this process is connected already. The embedded Ray ends with the process.

    Raises
    ------
    ResourceError
        If no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address in (None, "", "local"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, namespace="rayfm", **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, namespace="rayfm", **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray cluster answered at {address}: {error}. Start one with `ray start --head`, check the address and "
            "its token, or leave the address out to use an embedded Ray."
        ) from error


def _knock(address: str) -> None:
    """See that something listens at ``host:port``: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S).close()


def is_embedded() -> bool:
    """Tell whether the connected Ray was started by this process."""
    node = ray._private.worker._global_node
    return bool(node is not None and node.is_head())


def cluster_cpus() -> float:
    """Return the CPUs that the whole cluster has."""
    return float(ray.cluster_resources().get("CPU", 0.0))


def quiet_data_context() -> Any:
    """Return this process's Ray Data context, made silent and deterministic in the order of rows."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the traceback of every error that it raises
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a new context warns of settings that Ray itself makes
        context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    return context


def check_size(count: int, *, oversubscribe: bool) -> None:
    """See that the cluster has a CPU for each of `count` workers, before anything is read or started.

    Raises
    ------
    ResourceError
        If it has not, unless workers may share CPUs.
    """
    total = cluster_cpus()
    if count > total and not oversubscribe:
        raise ResourceError(
            f"{count} workers need {count} CPUs, the cluster has {total:g}. Lower train_instance_count or add nodes."
        )


def wait_for_a_cpu(check: Callable[[], None], timeout_s: float = RESERVATION_TIMEOUT_S) -> None:
    """Wait until a read task can run: Ray Data itself would wait for ever without a word.

    Raises
    ------
    ResourceError
        If no CPU becomes free in time.
    """
    needed = min(1.0, cluster_cpus())
    deadline = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0.0)) < needed:
        check()
        if time.monotonic() > deadline:
            raise ResourceError(
                f"reading needs {needed:g} CPU, {free:g} of the cluster's {cluster_cpus():g} were free for "
                f"{timeout_s:g} s. Wait until other jobs end."
            )
        time.sleep(0.2)


def memory_of_a_worker(count: int) -> int:
    """Return a worker's part of the memory of the smallest node, in bytes, when `count` spread over the nodes.

    Ray's own figure for a node, which knows the limits of containers and leaves out the object store.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    smallest = min(node.get("memory", 2.0**62) for node in nodes)
    return int(smallest / -(-count // len(nodes)))


@contextmanager
def reserved_workers(count: int, *, oversubscribe: bool, name: str) -> Iterator[tuple[PlacementGroup, float]]:
    """Reserve a place for each of `count` workers; yields (placement group, CPUs of one worker).

    Parameters
    ----------
    oversubscribe
        Let workers share CPUs when there are fewer than `count`, as on a laptop; else that is an error.
    name
        Name of the reservation, by which `release` can remove it when this process was killed; used only once.

    Raises
    ------
    ResourceError
        If the cluster does not have, or does not free in time, a CPU for each worker.
    """
    check_size(count, oversubscribe=oversubscribe)
    total = cluster_cpus()
    cpus = 1.0 if count < total else max(0.01, 0.9 * total / count)  # the rest is for small tasks beside the workers
    group = placement_group([{"CPU": cpus}] * count, strategy="SPREAD", name=name)
    try:
        if not group.wait(RESERVATION_TIMEOUT_S):
            free = ray.available_resources().get("CPU", 0.0)
            raise ResourceError(
                f"{count} workers need {cpus * count:g} CPUs, {free:g} of the cluster's {total:g} were free for "
                f"{RESERVATION_TIMEOUT_S:g} s. Wait until other jobs end, or lower train_instance_count."
            )
        yield group, cpus
    finally:
        remove_placement_group(group)


def release(name: str) -> None:
    """Remove the reservation of that name if it is still there: Ray keeps it until the whole driver ends."""
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:
        return


def wait_for(references: list[Any], timeout_s: float, what: str, check: Callable[[], None] = lambda: None) -> list[Any]:
    """Return the results of one call per rank, with a deadline whose message names the ranks waited for.

    `check` is called every half second; what it raises ends the wait.

    Raises
    ------
    RayfmError
        The first error that rayfm itself raised in a call.
    WorkerError
        If a call died or did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(references)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=min(0.5, max(0.0, deadline - time.monotonic())))
        check()
        if not done and time.monotonic() < deadline:
            continue
        if not done:
            ranks = [rank for rank, reference in enumerate(references) if reference in waiting]
            raise WorkerError(f"{what} timed out after {timeout_s:g} s: no answer from ranks {ranks}.")
        try:
            ray.get(done[0])
        except ray.exceptions.RayError as error:
            place = f" on rank {references.index(done[0])}" if len(references) > 1 else ""
            raise explain(error, f"{what} failed{place}") from error
    return list(ray.get(references))


def explain(error: BaseException, what: str) -> RayfmError:
    """Return the error of rayfm inside one of Ray's, or a `WorkerError` that tells what Ray said."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        inner = queue.pop()
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, RayfmError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        queue += [inner.__context__, inner.__cause__, getattr(inner, "cause", None)]
    if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        return WorkerError(f"{what}: its process died, by a crash, a kill or for want of memory. See Ray's logs.")
    return WorkerError(f"{what}: {type(error).__name__}: {error}")
