"""What Ray's job API (``ray job submit``, KubeRay's RayJob) has told this process, if it runs as a job's entrypoint."""

from __future__ import annotations

import json
import logging
import os

from rayfm.errors import StorageError
from rayfm.storage import absolute, local_path
from rayfm.training.job import NAME_PATTERN, new_job_name

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable, called so, in which Ray hands its job over."""

_MADE_UP = "raysubmit_"  # Ray's own ids begin so, where the user has named none
_WORKING_DIRECTORIES = "/runtime_resources/working_dir_files/"  # Ray's copies of --working-dir, one for each job
_LOG = logging.getLogger(__name__)
_named: set[str] = set()
"""Submission ids after which this process has named a training job."""


def is_submitted() -> bool:
    """Tell whether this process is the entrypoint of a job of Ray's."""
    return bool(os.environ.get(VARIABLE))


def submission_id() -> str | None:
    """Return the id of Ray's job, None elsewhere and where the user has chosen none."""
    try:
        found = json.loads(os.environ.get(VARIABLE) or "{}")["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and not found.startswith(_MADE_UP) else None


def name_of_new_job() -> str:
    """Return the name of a training job for which the user has given none.

    In a job of Ray's that is its submission id, so that one name serves ``ray job logs`` and ``rayfm jobs follow``;
    further training jobs of the same process have the time behind it. Elsewhere it is made from the time.
    """
    submitted = submission_id()
    if submitted is None:
        return new_job_name()
    if not NAME_PATTERN.fullmatch(submitted):
        _LOG.warning(
            "the training job is named after the time: a submission id must have 1 to 63 letters, digits and inner "
            "hyphens to be its name, got %s.", submitted
        )  # fmt: skip
        return new_job_name()
    if submitted in _named:
        return new_job_name(submitted)
    _named.add(submitted)
    return submitted


def check_output_path(output_path: str) -> None:
    """See that what a job of Ray's writes will still be there when the job is over.

    Raises
    ------
    StorageError
        If the path is in the copy of ``--working-dir`` in which Ray runs the job.
    """
    path = local_path(absolute(output_path))
    if path is not None and is_submitted() and _WORKING_DIRECTORIES in f"{path}/":
        raise StorageError(
            f"output_path must outlive the job, got {output_path} in the folder in which Ray runs it and which Ray "
            "removes afterwards. Give a bucket, or an absolute path on storage that all machines share."
        )
