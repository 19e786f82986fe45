"""How long a run waits for what the cluster does not have just now.

A cluster that grows, because an autoscaler or Kubernetes adds nodes when something waits for them, says so in its
environment: ``RAYFM_CLUSTER_GROWS_S`` is how many seconds a new node may take. Elsewhere what is too large for all
nodes together is refused at once.
"""

from __future__ import annotations

import os

from rayfm.errors import ResourceError

VARIABLE = "RAYFM_CLUSTER_GROWS_S"
RESERVATION_TIMEOUT_S = 120.0
"""How long to wait for what other jobs have."""


def growth_s() -> float:
    """Return how many seconds a new node may take, 0 where none come.

    Raises
    ------
    ResourceError
        If the variable is no such number.
    """
    text = os.environ.get(VARIABLE) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ResourceError(f"{VARIABLE} must be a number of seconds >= 0, got {text!r}. It is in Ray's environment.")
    return seconds


def patience_s() -> float:
    """Return how many seconds to wait for CPUs."""
    return max(RESERVATION_TIMEOUT_S, growth_s())
