"""What a run is to do, as whoever submits it tells its controller."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfm.hyperparameters import Hyperparameters
from rayfm.training import job
from rayfm.training.sources import Source


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that a run needs to know.

    Attributes
    ----------
    channels
        ``train`` and, if wanted, ``validation`` and ``test``.
    oversubscribe
        Let workers share CPUs, as on the embedded Ray.
    worker_memory_bytes
        A worker that shuffles copies its rows together when they take no more than this, else it shuffles block by
        block; in file order they stay in the object store. None: half of its part of its node's memory.
    round_timeout_s
        Deadline of everything that all workers do at once; shorter once it is known how long it takes (patience.py).
    worker_cpus
        CPUs of a worker; None for one, or for a part of one where there are more workers than CPUs.
    worker_reserved_bytes
        Memory that a node must have for each worker, by Ray's count; 0 asks for none.
    archive
        Write the model in SageMaker's layout too.
    max_run_s
        Stop the run after so many seconds; None for never.
    details
        What the caller wants to find in job.json; JSON's types only.
    claim
        Tells this submission from others of the same directory.
    resume
        Go on from the newest checkpoint in the directory.
    started
        When the job was first submitted; None where that is now.
    """

    job_name: str
    directory: job.JobDirectory
    hyperparameters: Hyperparameters
    channels: Mapping[str, Source]
    world_size: int = 1
    oversubscribe: bool = False
    worker_memory_bytes: int | None = None
    round_timeout_s: float = 3600.0
    worker_cpus: float | None = None
    worker_reserved_bytes: int = 0
    archive: bool = False
    max_run_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    claim: str = field(default_factory=lambda: secrets.token_hex(16))
    resume: bool = False
    started: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return what job.json says from the first on."""
        now = time.time()
        return {
            "job_name": self.job_name,
            "status": job.IN_PROGRESS,
            "started": now if self.started is None else self.started,
            "ended": None,
            "alive": now,
            "hyperparameters": self.hyperparameters.as_dict(),
            "train_instance_count": self.world_size,
            "archive": self.archive,
            "max_run_s": self.max_run_s,
            "channels": {name: source.description for name, source in self.channels.items()},
            "versions": job.library_versions(),
            "details": self.details,
            "claim": self.claim,
            "resumed": self.resume,
        }
