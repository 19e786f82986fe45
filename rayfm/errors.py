"""Everything rayfm raises on purpose.

One tree of classes:

    RayfmError
    ├── HyperparameterError (ValueError)   a hyperparameter is unknown, of the wrong type or out of range
    ├── DataError (ValueError)             the input is wrong; names file, record and remedy
    ├── StorageError (OSError)             a file, bucket or folder cannot be read or written
    ├── ModelFileError (ValueError)        a model file is damaged or not one of rayfm's
    ├── ResourceError (RuntimeError)       the cluster cannot give what the run needs; says both numbers
    ├── DivergenceError (ArithmeticError)  the loss or a gradient became NaN or infinite; says where
    ├── WorkerError (RuntimeError)         a worker failed for a reason that is not the user's
    ├── JobFailedError (ValueError)        a job that is waited for did not complete; has its status and reason
    ├── EndpointError (RuntimeError)       an endpoint is missing or did not answer with predictions; has the status
    └── StoppedError                       the run was asked to stop, and did
        └── MaxRunError                    it took longer than it was allowed

``except RayfmError`` catches them all. Each also has the builtin base that fits, so code written without
rayfm in mind (``except ValueError``) works. They survive pickling, because Ray sends them between processes.
"""

from __future__ import annotations

from typing import Any


class RayfmError(Exception):
    """Base of every error that rayfm raises on purpose."""


class HyperparameterError(RayfmError, ValueError):
    """A hyperparameter is unknown, of the wrong type or out of range."""


class DataError(RayfmError, ValueError):
    """The input is wrong.

    Attributes
    ----------
    problem
        What is wrong, as one sentence.
    remedy
        What to do about it; may be empty.
    path
        The file, or None where the data came from memory.
    record
        Number of the record in the file, counted from 1 (a line number in text), or None when the file as
        a whole is meant.
    """

    def __init__(self, problem: str, remedy: str = "", path: str | None = None, record: int | None = None) -> None:
        place = path or ""
        if record is not None:
            place = f"{path}:{record}" if path else f"row {record}"
        super().__init__(": ".join(filter(None, [place, " ".join(filter(None, [problem, remedy]))])))
        self.problem, self.remedy, self.path, self.record = problem, remedy, path, record

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.remedy, self.path, self.record)


class StorageError(RayfmError, OSError):
    """A file, bucket or folder cannot be read or written."""


class ModelFileError(RayfmError, ValueError):
    """A model file is damaged or not one of rayfm's."""


class ResourceError(RayfmError, RuntimeError):
    """The cluster cannot give what the run needs."""


class DivergenceError(RayfmError, ArithmeticError):
    """The loss, a gradient or a parameter became NaN or infinite."""


class WorkerError(RayfmError, RuntimeError):
    """A worker failed for a reason that is not the user's."""


class JobFailedError(RayfmError, ValueError):
    """A job that is waited for did not complete. SageMaker's SDK calls it `UnexpectedStatusException`.

    Attributes
    ----------
    job_name
        The job.
    actual_status
        ``Failed`` or ``Stopped``.
    reason
        Why, as ``FailureReason`` of the job's description says.
    kind
        ``Training`` or ``Transform``.
    allowed_statuses
        What was waited for.
    """

    allowed_statuses = ("Completed", "Stopped")

    def __init__(self, job_name: str, actual_status: str, reason: str, kind: str = "Training") -> None:
        super().__init__(f"Error for {kind} job {job_name}: {actual_status}. Reason: {reason}")
        self.job_name, self.actual_status, self.reason, self.kind = job_name, actual_status, reason, kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_name, self.actual_status, self.reason, self.kind)


class EndpointError(RayfmError, RuntimeError):
    """An endpoint is missing, cannot be reached, or did not answer with predictions.

    Attributes
    ----------
    status
        HTTP status of the answer; None when there was none.
    code
        Kind of the error, such as ``ModelError`` or ``ValidationError``; empty when the server did not say.
    """

    def __init__(self, message: str, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status, self.code)


class StoppedError(RayfmError):
    """The run was asked to stop, and did."""


class MaxRunError(StoppedError):
    """The run took longer than it was allowed, and was stopped."""
