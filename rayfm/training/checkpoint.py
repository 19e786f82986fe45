"""Checkpoints: what a run can go on from when its controller has gone, in files below the job's directory.

::

    <job directory>/checkpoints/<epoch>-<round>.npz     epochs and rounds that were done before, six digits each

Each is one archive of NumPy's, which is a ZIP file without compression. Nothing in it is unpickled. Its list of
contents stands at its end and every array has its CRC-32, so that a file that is not whole, or has changed, is
recognised as it is read; then the one before it is used. It appears under its name when it is whole.

========================  =====================================================================
array                     content
========================  =====================================================================
``facts``                 JSON in UTF-8, as bytes: `Facts`, and of each actor what is no array
``<actor>/<name>``        what `Worker.state` and `ParameterServer.state` return of an actor: those of the ranks
                          in their order, and then the servers
``best/<name>``           `Parameters` of the best epoch, where those are not the workers' any more
========================  =====================================================================
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.errors import StorageError
from rayfm.kernels.tables import Parameters, joined
from rayfm.storage import atomic_writer, delete_file, join, list_names, open_input, remove_folder
from rayfm.training.job import CHECKPOINTS

SUFFIX = ".npz"

RETAINED = 2
"""So many are left: the newest, and one in case that it is damaged."""

FETCHING_S = 600.0
"""How long it may take until the states are where they are written."""

State = dict[str, Any]
"""Of an actor: arrays, and what JSON knows, by name."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the controller knows of a run between two rounds, in JSON's types.

    Attributes
    ----------
    epoch
        `Epoch.as_dict` of the epoch that goes on.
    rounds
        Rounds of an epoch.
    best_epoch, best_value
        The best epoch so far, and the metric by which it is; -1 and NaN when nothing is validated.
    history
        The records of the epochs that are done.
    train_rows, feature_dim
        By these the training data is known again.
    """

    epoch: dict[str, Any]
    rounds: int
    world_size: int
    seed: int
    best_epoch: int
    best_value: float
    history: list[dict[str, Any]]
    hyperparameters: dict[str, Any]
    train_rows: int
    feature_dim: int

    @property
    def name(self) -> str:
        """The name of the file: later ones sort behind earlier ones."""
        return f"{self.epoch['number']:06d}-{self.epoch['rounds_done']:06d}{SUFFIX}"

    @property
    def place(self) -> str:
        """What a person calls it; epochs and rounds are counted from 1."""
        done = self.epoch["rounds_done"]
        return f"epoch {self.epoch['number'] + 1}" + (f", round {done + 1} of {self.rounds}" if done else "")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it was read."""

    uri: str
    facts: Facts
    states: list[State]
    best: Parameters | None


class Checkpoints:
    """The checkpoints of a job.

    Parameters
    ----------
    job_uri
        The job's directory.
    """

    def __init__(self, job_uri: str) -> None:
        self._folder = join(job_uri, CHECKPOINTS)

    def write(self, facts: Facts, states: list[State], best: Parameters | None) -> str:
        """Write one, and delete those that are not needed any more.

        Returns
        -------
        uri

        Raises
        ------
        StorageError
            If it cannot be written: then all are still there.
        """
        arrays, others = _divided(states)
        if best is not None:
            arrays |= {f"best/{name}": array for name, array in best._asdict().items()}
        text = json.dumps({**asdict(facts), "states": others}).encode()
        uri = join(self._folder, facts.name)
        with atomic_writer(uri) as file:
            np.savez(file, facts=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]
        with suppress(StorageError):  # next time
            names = self._names()
            later = [name for name in names if name > facts.name]  # of a run that was resumed from further back
            for name in later + [name for name in names if name < facts.name][: 1 - RETAINED]:
                delete_file(join(self._folder, name))
        return uri

    def newest(self) -> Checkpoint | None:
        """Read the newest one that is whole; None when there is none.

        Raises
        ------
        StorageError
            If the storage fails.
        """
        for name in reversed(self._names()):
            uri = join(self._folder, name)
            try:
                return _read(uri)
            except _DAMAGE as error:
                _LOG.warning("%s is damaged (%s): the checkpoint before it is used.", uri, error)
            except StorageError:
                raise
            except OSError as error:
                raise StorageError(f"{uri} cannot be read: {error}") from error
        return None

    def remove(self) -> None:
        """Delete all of them, and what is left of those that were being written.

        Raises
        ------
        StorageError
            If they cannot be deleted.
        """
        remove_folder(self._folder)

    def _names(self) -> list[str]:
        return sorted(name for name in list_names(self._folder) if name.endswith(SUFFIX) and name[0].isdigit())


class CheckpointWriter:
    """Writes checkpoints while the run goes on.

    Parameters
    ----------
    tell
        Called in another thread with an event for each that was written, or could not be.

    Attributes
    ----------
    resumable
        Where the job could be resumed from: what was written last, or what the run itself was resumed from.
    """

    def __init__(self, checkpoints: Checkpoints, tell: Callable[[dict[str, Any]], None]) -> None:
        self._checkpoints, self._tell = checkpoints, tell
        self._thread: threading.Thread | None = None
        self.resumable: Facts | None = None

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, facts: Facts, states: list[Any], best: list[Any] | None) -> None:
        """Write one in the background, after the one before.

        Parameters
        ----------
        states
            References to those of the actors.
        best
            References to the best epoch's parameters, in ranges of features.
        """
        self.finish()
        self._thread = threading.Thread(target=self._write, args=(facts, states, best), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is written."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, facts: Facts, states: list[Any], best: list[Any] | None) -> None:
        began = time.monotonic()
        event = {"event": "checkpoint", "epoch": facts.epoch["number"], "round": facts.epoch["rounds_done"]}
        try:
            got = ray.get([*states, *(best or [])], timeout=FETCHING_S)
            uri = self._checkpoints.write(facts, got[: len(states)], joined(got[len(states) :]) if best else None)
            self.resumable = facts
            self._tell({**event, "uri": uri, "seconds": time.monotonic() - began})
        except Exception as error:  # whatever it is, the run goes on without
            self._tell({**event, "uri": None, "seconds": time.monotonic() - began, "reason": str(error)})


_DAMAGE = (ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy, zipfile and json raise of a file that is not whole."""


def _divided(states: list[State]) -> tuple[dict[str, NDArray[Any]], list[State]]:
    """Return the arrays of all states by ``<actor>/<name>``, and the rest of each."""
    arrays: dict[str, NDArray[Any]] = {}
    others: list[State] = []
    for actor, state in enumerate(states):
        others.append({name: value for name, value in state.items() if not isinstance(value, np.ndarray)})
        arrays |= {f"{actor}/{name}": value for name, value in state.items() if isinstance(value, np.ndarray)}
    return arrays, others


def _read(uri: str) -> Checkpoint:
    """Read one; raises one of `_DAMAGE` when it is not whole."""
    with open_input(uri, compressed=False) as file, np.load(file, allow_pickle=False) as archive:
        if not isinstance(archive, Mapping):
            raise ValueError("it is no archive")
        arrays = {name: archive[name] for name in archive}
    facts: dict[str, Any] = json.loads(arrays.pop("facts").tobytes())
    states: list[State] = facts.pop("states")
    best: State = {}
    for name, array in arrays.items():
        actor, _, part = name.partition("/")
        (best if actor == "best" else states[int(actor)])[part] = array
    return Checkpoint(uri, Facts(**facts), states, Parameters(**best) if best else None)
