"""What SageMaker's instance types mean here: the CPUs and the memory of one worker."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayfm.errors import HyperparameterError

LOCAL = "local"
"""The type that divides the CPUs of the cluster evenly; no type at all means the same."""

SHARE_OF_WORKERS = 0.6
"""Of an instance's memory: Ray leaves about so much to its workers, the rest to the object store and the system."""

_CPUS = {"medium": 2, "large": 2, "xlarge": 4, "metal": 96}
_GIB_PER_CPU = {"c": 2.0, "m": 4.0, "r": 8.0, "t": 4.0, "p": 8.0, "g": 4.0, "i": 8.0, "x": 16.0}
_ODD_CPUS = {"c4.8xlarge": 36}
_PATTERN = re.compile(r"ml\.([a-z])([0-9a-z]*)\.((\d*)xlarge|large|medium|metal)")


@dataclass(frozen=True, slots=True)
class Instance:
    """The resources of one worker.

    Attributes
    ----------
    name
        As SageMaker calls it, such as ``ml.c5.2xlarge``.
    cpus
        Virtual CPUs.
    memory_bytes
        Main memory of such a machine.
    """

    name: str
    cpus: int
    memory_bytes: int

    @property
    def reserved_bytes(self) -> int:
        """Memory that a node must offer to count as such a machine."""
        return int(self.memory_bytes * SHARE_OF_WORKERS)


def instance_of(name: str | None) -> Instance | None:
    """Return what an instance type means; None for ``local`` and for none.

    The sizes follow AWS's naming: *n* ``xlarge`` are 4 n CPUs, and a family has a fixed memory per CPU.

    Raises
    ------
    HyperparameterError
        If it is no instance type.

    Examples
    --------
    >>> instance = instance_of("ml.c5.2xlarge")
    >>> instance.cpus, instance.memory_bytes // 2**30
    (8, 16)
    """
    if name in (None, LOCAL, "local_gpu"):
        return None
    match = _PATTERN.fullmatch(str(name))
    if not match or match[1] not in _GIB_PER_CPU:
        raise HyperparameterError(
            f"train_instance_type must be a SageMaker instance type such as ml.c5.2xlarge, or local, got {name!r}."
        )
    family, generation, size, times = match.groups()
    short = f"{family}{generation}.{size}"
    cpus = _ODD_CPUS.get(short) or (4 * int(times or 1) if size.endswith("xlarge") else _CPUS[size])
    return Instance(str(name), cpus, int(cpus * _GIB_PER_CPU[family] * 2**30))
