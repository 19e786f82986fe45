"""What a run is refused for before it reads any data: said with what it needs and what there is."""

from __future__ import annotations

from rayfm.errors import ResourceError
from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.tables import CODES, size_bytes
from rayfm.training import cluster
from rayfm.training.messages import used_threads

LEAST_IN_STORE = 0.1
"""Of the size of files: long numbers in text shrink so far, and of Parquet there may be columns that nobody reads."""


def check_room(size_of_files: int) -> None:
    """Refuse data that neither the object store nor the disk behind it can hold.

    Raises
    ------
    ResourceError
        If it is too large.
    """
    needed = LEAST_IN_STORE * size_of_files
    store, disk = cluster.room_for_blocks()
    if needed > store + disk:
        raise ResourceError(
            f"the data takes at least {needed / 2**30:.1f} GiB in Ray's object store, which has {store / 2**30:.1f} "
            f"GiB, and the disk that it spills to takes {disk / 2**30:.1f} GiB more. Start Ray with a larger "
            "--object-store-memory, free space on the disk, or add nodes."
        )


def check_memory(values: Hyperparameters, world_size: int, feature_dim: int) -> None:
    """Refuse a model that cannot fit a worker, with its optimizer's states and what is exchanged.

    Raises
    ------
    ResourceError
        If it cannot.
    """
    needed = size_bytes(CODES[values.optimizer], feature_dim, values.num_factors)
    threads = used_threads(values, values.threads or 1)
    if values.hogwild and threads > 1 and values.mini_batch_size > 1:
        needed += 4 * feature_dim * threads  # their slots
    exchanged = 4 * feature_dim * (values.num_factors + 1) * (1 if values.optimizer == "adam" else 2)
    if world_size == 1:
        needed += exchanged  # the best epoch's
    else:  # what the worker tells, what it sets aside; the rows of the parameter server and what it makes of them
        needed += exchanged + 4 * feature_dim * (values.num_factors + 1)
        needed += 2 * exchanged // cluster.workers_of_a_node(world_size)
    room = cluster.memory_of_a_worker(world_size)
    if needed > room:
        raise ResourceError(
            f"a worker needs {needed / 2**30:.1f} GiB for feature_dim={feature_dim} and num_factors="
            f"{values.num_factors}, and has {room / 2**30:.1f} GiB. Lower num_factors, hash the features, or see with "
            "`rayfm check` whether a single outlying key makes feature_dim so large."
        )
