"""``rayfm report``: a page about a training job."""

from __future__ import annotations

from typing import Any

import click

from rayfm.cli.command import Command, debug_option
from rayfm.cli.jobs import found_job, place_options


@click.command(
    cls=Command,
    examples=[
        ("by the job's name; writes rayfm-output/first/report.html", "rayfm report first"),
        ("by its directory, into a file here", "rayfm report s3://bucket/models/first --output first.html"),
    ],
)
@click.argument("job")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where the page is written; report.html in the job's directory when left out.",
)
@place_options
@debug_option
def report(job: str, *, output: str | None, **place: Any) -> None:
    """Write a page about a training job: was it good, and why.

    JOB is the job's name or its directory. The page is one HTML file that needs no network: measures after each epoch,
    how the scores of held-out rows lie, where the time went, the workers, the largest terms of the model,
    hyperparameters and facts. A job that runs, failed or was stopped has a page too. Needs `pip install rayfm[report]`.
    """
    from rayfm.report import write_report

    click.echo(write_report(found_job(job, **place), output))
