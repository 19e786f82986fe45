"""A checkpoint made fit for the run that goes on from it, which may have been told otherwise than the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rayfm.errors import HyperparameterError
from rayfm.hyperparameters import Hyperparameters
from rayfm.training.checkpoint import Checkpoint
from rayfm.training.epoch import Epoch
from rayfm.training.parameter_server import merged_states, state_of_server

_OF_THE_MODEL = ("predictor_type", "num_factors", "optimizer")
_OF_THE_ORDER = {"mini_batch_size", "rounds_per_epoch", "shuffle"}
_OF_NO_BITS = ("epochs", "early_stopping_patience", "early_stopping_metric", "feature_dim", "seed", "threads")


def check_resumable(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that the hyperparameters of a run are such that it can go on from another.

    Raises
    ------
    HyperparameterError
        If they are of another kind of model, or of another optimizer.
    """
    for name in _OF_THE_MODEL:
        if before.get(name) != now.get(name):
            raise HyperparameterError(
                f"{name} of a job that is resumed must be {before.get(name)} as before, got {now.get(name)}. Train a "
                "new job for that."
            )


def for_this_run(
    checkpoint: Checkpoint, values: Hyperparameters, world_size: int, seed: int, *, anew: bool = False
) -> tuple[Checkpoint, list[str]]:
    """Return a checkpoint that this run can go on from, and what is to be said of that.

    Where the rows are dealt out or ordered differently, an epoch of which some is trained starts again with all of its
    rows. Each worker gets the state of one of those before.

    Parameters
    ----------
    anew
        Let it start again in any case: workers have found that its rows come in another order.

    Raises
    ------
    HyperparameterError
        As `check_resumable`.
    """
    facts, now = checkpoint.facts, values.as_dict()
    check_resumable(facts.hyperparameters, now)
    changed = [name for name in now if name not in _OF_NO_BITS and facts.hyperparameters.get(name) != now[name]]
    notes = [f"{name} is {now[name]}, and was {facts.hyperparameters.get(name)}." for name in changed]
    notes += [f"The seed is {seed}, and was {facts.seed}."] if seed != facts.seed else []
    notes += [f"{world_size} workers go on from {facts.world_size}."] if world_size != facts.world_size else []
    notes += ["The rows come in another order, as with other memory or CPUs."] if anew else []
    is_dealt_anew = anew or world_size != facts.world_size or seed != facts.seed or set(changed) & _OF_THE_ORDER
    if is_dealt_anew and facts.epoch["rounds_done"]:
        notes.append(f"Epoch {facts.epoch['number'] + 1}, of which some was trained, starts again with all its rows.")
    if notes:
        notes.append("The model will not be bit for bit that of a run that was not interrupted.")
    return (_dealt_anew(checkpoint, values, world_size) if is_dealt_anew else checkpoint), notes


def _dealt_anew(checkpoint: Checkpoint, values: Hyperparameters, world_size: int) -> Checkpoint:
    facts = checkpoint.facts
    workers, servers = checkpoint.states[: facts.world_size], checkpoint.states[facts.world_size :]
    if servers:
        workers, servers = merged_states(workers, servers, values)
    at_start = {"marks": np.empty(0, np.uint16), "epoch_batches": 0, "epoch_sums": []}
    workers = [{**state, **at_start} for state in workers]
    states = [workers[rank % len(workers)] for rank in range(world_size)]
    if world_size > 1:
        states += servers or [state_of_server(workers[0], values)]
    epoch = Epoch.begin(facts.epoch["number"], values.predictor_type).as_dict()
    return replace(checkpoint, facts=replace(facts, epoch=epoch, world_size=world_size), states=states)
