"""What an endpoint is told: which model, within which limits, for whom."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from rayfm.errors import EndpointError

MAX_BODY_BYTES = 6 * 2**20
"""The limit of SageMaker's real-time endpoints."""

MAX_TIMEOUT_S = 100.0
"""After 120 s the proxy gives up."""

_TARGET_ONGOING_REQUESTS = 1.0  # of a replica on average, when it is about half busy: small ones take turns
_SCALING = {"upscale_delay_s": 10.0, "look_back_period_s": 15.0}  # a replica takes 5 s to start


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica takes on; more is refused with the status given.

    Attributes
    ----------
    max_body_bytes
        Size of a request (413).
    max_rows
        Rows of a request (413).
    max_nonzeros
        Stored values of a request, zeros not counted (413).
    max_pending
        Requests that a replica holds at a time, the one that is scored included (503).
    timeout_s
        Seconds for the body of a request to arrive (408) and its rows to be scored (424, as SageMaker has it).
    """

    max_body_bytes: int = MAX_BODY_BYTES
    max_rows: int = 1_000_000
    max_nonzeros: int = 50_000_000
    max_pending: int = 256
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise EndpointError(f"{field.name} must be > 0, got {value}.")
        if self.timeout_s > MAX_TIMEOUT_S:
            raise EndpointError(
                f"timeout_s must be <= {MAX_TIMEOUT_S:g}, got {self.timeout_s:g}. Send fewer rows at once."
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """What Serve hands to each replica of an endpoint.

    Attributes
    ----------
    model_uri
        Whatever `FactorizationMachine.load` takes.
    revision
        Tells one deployment of the endpoint from the next.
    limits
        What a replica takes on.
    key_digests
        SHA-256 of the API keys, of which a request must show one; empty when anybody may ask. The keys themselves
        are nowhere.
    access_log
        Whether each request is a line in a log.
    """

    model_uri: str
    revision: str
    limits: Limits = Limits()
    key_digests: tuple[str, ...] = ()
    access_log: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return it as the plain data that Serve keeps."""
        return {**asdict(self), "key_digests": list(self.key_digests)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Read back `as_dict`.

        Raises
        ------
        EndpointError
            If there is something unknown, as in a Serve config that was written by hand.
        """
        known = dict(values)
        _check_keys(cls, known, "user_config", needed=("model_uri", "revision"))
        limits = dict(known.pop("limits", {}))
        _check_keys(Limits, limits, "limits")
        known["revision"] = str(known["revision"])  # who writes YAML by hand may well call it 7
        known["key_digests"] = tuple(known.get("key_digests", ()))
        return cls(**known, limits=Limits(**limits))


def _check_keys(kind: type[Any], values: Mapping[str, Any], what: str, needed: Iterable[str] = ()) -> None:
    names = [field.name for field in fields(kind)]
    if missing := sorted(set(needed) - set(values)):
        raise EndpointError(f"{what} of an endpoint must have {' and '.join(needed)}, got no {missing[0]}.")
    if unknown := [str(key) for key in values if key not in names]:
        raise EndpointError(f"{what} of an endpoint must have no other keys than {', '.join(names)}, got {unknown[0]}.")


def new_revision() -> str:
    """Return a revision that no other deployment has: the time, and a few letters."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


def check_replicas(least: int | None, most: int | None) -> None:
    """See that an endpoint can have so many replicas.

    Raises
    ------
    EndpointError
        If it cannot.
    """
    if least is not None and least < 1:
        raise EndpointError(f"replicas must be >= 1, got {least}.")
    if most is not None and most < (least or 1):
        raise EndpointError(f"max_replicas must be >= replicas, got {most} and {least or 1}.")


def settled_replicas(least: int | None, most: int | None, was: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return the least and the most replicas; what is not said stays, as far as it fits what is."""
    if least is None:
        least = min(was[0], most or was[0])
    if most is None:
        most = max(least, was[1]) if was[1] > was[0] else least
    return least, most


def replica_options(least: int, most: int) -> dict[str, Any]:
    """Return the options of Serve that keep the number of replicas, or let it follow the requests."""
    if least == most:
        return {"num_replicas": least}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": _TARGET_ONGOING_REQUESTS}
    return {"autoscaling_config": {**scaling, **_SCALING}}
