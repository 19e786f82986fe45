"""The Ray cluster a command runs on: the one it is told, or an embedded one of its own."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import client
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from rayfm.errors import RayfmError, ResourceError, WorkerError
from rayfm.training import addresses
from rayfm.training.growth import growth_s, patience_s

_LOG = logging.getLogger(__name__)

_LOSSES = {
    ray.exceptions.OutOfMemoryError: "its process was killed for want of memory.",
    ray.exceptions.NodeDiedError: "its node died.",
    ray.exceptions.ObjectLostError: "data that it needed was lost with a node.",
    ray.exceptions.RayActorError: "its process died, by a crash, a kill or for want of memory.",
    ray.exceptions.WorkerCrashedError: "its process died, by a crash, a kill or for want of memory.",
}
"""What to say when something was lost that can be had again."""

BYTES_HERE = 8 * 2**20
"""A process reads so much in the second in which another starts; a Ray takes four to start."""

SPILLING_LIMIT = 0.95
"""Ray spills nothing to a disk that is fuller."""


def connect(address: str | None = None) -> None:
    """Join the cluster that is meant; start an embedded Ray where none is.

    Does nothing when this process is connected already. The embedded Ray ends with the process.

    Parameters
    ----------
    address
        Of the cluster; what `addresses.meant` says when left out.

    Raises
    ------
    ResourceError
        If no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    _let_ray_complain_on_stderr()
    meant = addresses.meant(address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if meant is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, namespace="rayfm", **quiet)
        return
    try:
        addresses.check(meant)
        ray.init(address=meant, namespace="rayfm", **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        problem = f"no Ray cluster answered at {meant}: {str(error).rstrip('.')}."
        raise ResourceError(f"{problem} {addresses.remedy(meant)}") from error


def _let_ray_complain_on_stderr() -> None:
    """Send to standard error what Ray says of trouble elsewhere: it prints it where results are printed."""
    printed = getattr(ray._private.worker, "print_to_stdstream", None)
    if printed is None or getattr(printed, "is_ours", False):
        return

    def to_stderr(data: dict[str, Any], *more: Any, **options: Any) -> None:
        printed({**data, "is_err": True}, *more, **options)

    to_stderr.is_ours = True  # type: ignore[attr-defined]
    ray._private.worker.print_to_stdstream = to_stderr


def connect_if_told(address: str | None = None) -> None:
    """Join the cluster that is meant, if one is.

    That no cluster answers that only the environment means is only warned of: a job's directory outlives it.
    """
    if address:
        connect(address)
    elif addresses.meant() is not None:
        try:
            connect()
        except ResourceError as error:
            _LOG.warning("%s", error)


def is_embedded() -> bool:
    """Tell whether the connected Ray was started by this process."""
    node = ray._private.worker._global_node
    return bool(node is not None and node.is_head())


def address() -> str | None:
    """Return the address of the connected cluster, None when there is none."""
    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else None


def this_node() -> str | None:
    """Return Ray's name of the machine of this process, None for one that is no machine of the cluster's."""
    return None if client.ray.is_connected() else str(ray.get_runtime_context().get_node_id())


def cluster_cpus() -> float:
    """Return the CPUs that the whole cluster has."""
    return float(ray.cluster_resources().get("CPU", 0.0))


def is_one_machine() -> bool:
    """Tell whether the cluster is a single node."""
    return sum(bool(node["Alive"]) for node in ray.nodes()) == 1


def connect_unless_few(size_bytes: int | None, address: str | None = None) -> bool:
    """Tell whether so few bytes are best read by this process; join the cluster that is meant where they are not.

    They are where the cluster is this machine alone, or would be started for them.
    """
    if not _is_here(address):
        connect(address)
    is_few = size_bytes is not None and size_bytes <= BYTES_HERE and _is_here(address)
    if not is_few:
        connect(address)
    return is_few


def _is_here(address: str | None) -> bool:
    """Tell whether the cluster that is meant is this machine and no other, without starting any."""
    if ray.is_initialized():
        return this_node() is not None and is_one_machine()
    return addresses.meant(address) is None


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


class LostError(WorkerError):
    """A process, or what it had, was lost, or it hangs: a run can begin again."""


class HangingError(LostError):
    """A process did not answer in time."""


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """What a run wants for its workers.

    Attributes
    ----------
    count
        How many.
    cpus
        CPUs of each; None divides those of the cluster.
    memory_bytes
        Memory of each that a node must have, by Ray's count; 0 asks for none.
    share
        Let workers share CPUs when there are too few, as on a laptop.
    """

    count: int
    cpus: float | None = None
    memory_bytes: int = 0
    share: bool = False


def check_size(request: WorkerRequest) -> None:
    """See that the cluster has the CPUs for all workers, before anything is read or started.

    Raises
    ------
    ResourceError
        If it has not, unless workers may share CPUs or the cluster grows.
    """
    total, needed = cluster_cpus(), request.count * (request.cpus or 1)
    if needed > total and not request.share and not growth_s():
        smaller = " name a smaller train_instance_type," if request.cpus else ""
        raise ResourceError(
            f"{request.count} workers need {needed:g} CPUs, the cluster has {total:g}. Lower train_instance_count,"
            f"{smaller} or add nodes."
        )


def cpus_of_a_worker(request: WorkerRequest) -> float:
    """Return the CPUs of Ray's that each worker gets."""
    total, count = cluster_cpus(), request.count
    if request.cpus is not None and not request.share:
        return request.cpus
    if count < total or growth_s():
        return 1.0
    return max(0.01, 0.9 * total / count)  # the rest is for small tasks beside the workers


def spare_cpus(request: WorkerRequest) -> float:
    """Return the CPUs that tasks can have beside the workers; 0 where they would be too few for the workers' data."""
    spare = cluster_cpus() - request.count * cpus_of_a_worker(request)
    return spare if request.share or spare >= 1 else 0.0


def wait_for_a_cpu(check: Callable[[], None]) -> None:
    """Wait until a read task can run: Ray Data itself would wait for ever without a word.

    Raises
    ------
    ResourceError
        If no CPU becomes free in time.
    """
    needed, timeout_s = 1.0 if growth_s() else min(1.0, cluster_cpus()), patience_s()
    deadline = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0.0)) < needed:
        check()
        if time.monotonic() > deadline:
            raise ResourceError(
                f"reading needs {needed:g} CPU, {free:g} of the cluster's {cluster_cpus():g} were free for "
                f"{timeout_s:g} s. Wait until other jobs end."
            )
        time.sleep(0.2)


def node_count() -> int:
    """Return how many nodes can have workers."""
    return len(_nodes())


def workers_of_a_node(count: int) -> int:
    """Return how many workers a node gets at most when `count` spread over the nodes."""
    return -(-count // node_count())


def memory_of_a_worker(count: int) -> int:
    """Return a worker's part of the memory of the smallest node, in bytes, when `count` spread over the nodes.

    Ray's own figure for a node, which knows the limits of containers and leaves out the object store.
    """
    smallest = min(node.get("memory", 2.0**62) for node in _nodes())
    return int(smallest / workers_of_a_node(count))


def room_for_blocks() -> tuple[float, float]:
    """Return what the object stores hold, in bytes, and what else this machine's disk takes when they are full.

    Other machines' disks are not known: where there are several, the second is infinite.
    """
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    if not is_one_machine():
        return store, math.inf
    usage = shutil.disk_usage(ray._private.worker._global_node.get_session_dir_path())
    return store, max(0.0, usage.free - (1.0 - SPILLING_LIMIT) * usage.total)


def _nodes() -> list[dict[str, float]]:
    """Return the resources of the nodes that have CPUs."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


@contextmanager
def reserved_workers(
    request: WorkerRequest, check: Callable[[], None] = lambda: None
) -> Iterator[tuple[PlacementGroup, float]]:
    """Reserve a place for each worker; yields (placement group, CPUs of one worker).

    `check` is called every second of the wait; what it raises ends the wait.

    Ray removes the reservation also when the controller, which made it, is killed.

    Raises
    ------
    ResourceError
        If the cluster does not have, or does not free in time, what is requested.
    """
    check_size(request)
    cpus = cpus_of_a_worker(request)
    bundle = {"CPU": cpus} | ({"memory": request.memory_bytes} if request.memory_bytes else {})
    group = placement_group([bundle] * request.count, strategy="SPREAD")
    try:
        deadline = time.monotonic() + patience_s()
        while not group.wait(1.0):
            check()
            if time.monotonic() > deadline:
                raise ResourceError(_what_is_missing(request, cpus))
        yield group, cpus
    finally:
        remove_placement_group(group)


def check_places(group: PlacementGroup, request: WorkerRequest, missing_since: float | None) -> float | None:
    """Return since when places are missing that were lost with a node, None when they are there.

    Raises
    ------
    ResourceError
        If that is too long ago.
    """
    if placement_group_table(group)["state"] == "CREATED":
        return None
    now = time.monotonic()
    if missing_since is not None and now - missing_since > patience_s():
        raise ResourceError(_what_is_missing(request, cpus_of_a_worker(request)))
    return missing_since or now


def _what_is_missing(request: WorkerRequest, cpus: float) -> str:
    free = ray.available_resources()
    memory = f" and {request.memory_bytes / 2**30:.1f} GiB" if request.memory_bytes else ""
    return (
        f"{request.count} workers need {cpus:g} CPUs{memory} each; of the cluster's {cluster_cpus():g} CPUs "
        f"{free.get('CPU', 0.0):g} and of its memory {free.get('memory', 0.0) / 2**30:.1f} GiB were free for "
        f"{patience_s():g} s. Wait until other jobs end, or lower train_instance_count."
    )


def wait_for(references: list[Any], timeout_s: float, what: str, check: Callable[[], None] = lambda: None) -> list[Any]:
    """Return the results of one call per rank, with a deadline whose message names the ranks waited for.

    `check` is called every half second; what it raises ends the wait.

    Raises
    ------
    RayfmError
        The first error that rayfm itself raised in a call.
    LostError
        If a process that it needs died, or did not answer in time.
    WorkerError
        If a call failed otherwise.
    """
    deadline = time.monotonic() + timeout_s
    waiting, results = list(references), {}
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=min(0.5, max(0.0, deadline - time.monotonic())))
        check()
        if not done and time.monotonic() < deadline:
            continue
        if not done:
            ranks = [rank for rank, reference in enumerate(references) if reference in waiting]
            raise HangingError(f"{what} timed out after {timeout_s:.3g} s: no answer from ranks {ranks}.")
        try:
            results[done[0]] = ray.get(done[0])
        except ray.exceptions.RayError as error:
            place = f" on rank {references.index(done[0])}" if len(references) > 1 else ""
            explained = explain(error, f"{what} failed{place}")
            if loss(error) and type(explained) is WorkerError:
                raise LostError(str(explained)) from error
            raise explained from error
    return [results[reference] for reference in references]


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
    if lost := loss(error):
        return WorkerError(f"{what}: {lost} See Ray's logs.")
    return WorkerError(f"{what}: {type(error).__name__}: {error}")


def loss(error: BaseException | None) -> str | None:
    """Return what to say when an error of Ray's is the loss of a process or of its data, else None.

    An actor that fails while it starts is not lost: it would fail again.
    """
    while error is not None:
        for kind, text in _LOSSES.items():
            if isinstance(error, kind) and not getattr(error, "actor_init_failed", False):
                return text
        error = getattr(error, "cause", None) or error.__cause__
    return None
