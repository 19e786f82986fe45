"""A page about a training job, for people: ``rayfm report``.

It is made of what the job's directory has: job.json, metrics.jsonl and the model. `write_report` writes it; `known`
reads what is there, `findings` and `times` think about it, `curves` and `quality` draw (`drawing` makes the plots part
of a page), `page` and page.html lay it out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rayfm.errors import ModelFileError, ResourceError, StorageError
from rayfm.model import FactorizationMachine
from rayfm.storage import absolute, atomic_writer, join

if TYPE_CHECKING:
    from rayfm.report.known import KnownJob
    from rayfm.training.jobs import TrainingJob

REPORT_FILE = "report.html"


def write_report(job: TrainingJob, output: str | None = None) -> str:
    """Write the page of a job that runs or has run.

    Parameters
    ----------
    output
        URI of the file; ``report.html`` in the job's directory when left out.

    Returns
    -------
    uri
        The file.

    Raises
    ------
    StorageError
        If the job's directory cannot be read, or the file not be written.
    ResourceError
        If the libraries that draw are not installed.
    """
    try:
        from rayfm.report.page import page
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"a report needs the library {error.name}, which is not installed. Install it: pip install 'rayfm[report]'."
        ) from error
    uri = absolute(output) if output else join(job.directory.uri, REPORT_FILE)
    text = page(_known(job))
    with atomic_writer(uri) as file:
        file.write(text.encode())
    return uri


def _known(job: TrainingJob) -> KnownJob:
    from rayfm.report.known import KnownJob

    status = job.describe()
    model, without = None, "A job writes its model when it completes."
    if status["status"] == "Completed":
        try:
            model = FactorizationMachine.load(job.directory.model_uri)
        except (ModelFileError, StorageError) as error:
            without = str(error)
    return KnownJob(job.name, job.directory.uri, status, job.directory.read_events(), model, without, time.time())
