"""What an endpoint is told: which model, within which limits, for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rayfm.errors import EndpointError

MAX_BODY_BYTES = 6 * 2**20
"""The limit of SageMaker's real-time endpoints."""

MAX_TIMEOUT_S = 100.0
"""After 120 s the proxy gives up."""


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
            if not value > 0:
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
        """Read back `as_dict`."""
        known = {**values, "limits": Limits(**values.get("limits", {}))}
        return cls(**{**known, "key_digests": tuple(values.get("key_digests", ()))})
