"""``rayfm train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayfm.cli.command import Command, Function, GroupedOption, debug_option
from rayfm.cli.models import listed
from rayfm.cli.options import (
    address_option,
    byte_size,
    hyperparameter_options,
    reading_options,
    settled_hyperparameters,
)

if TYPE_CHECKING:
    from rayfm.training.jobs import TrainingJob


def _data_option(flag: str, help: str) -> Callable[[Function], Function]:
    return click.option(flag, multiple=True, metavar="URI", cls=GroupedOption, heading="Data", help=help)


@click.command(
    cls=Command,
    examples=[
        ("a regressor; the model is the epoch that is best on the validation data",
         "rayfm train train.parquet --validation valid.parquet --num-factors 16 \\\n"
         "    --predictor-type regressor --epochs 20 --early-stopping-patience 3"),
        ("a classifier on four workers of a cluster, data and model on S3",
         "rayfm train s3://bucket/clicks/ --test s3://bucket/test/ --num-factors 8 \\\n"
         "    --predictor-type binary_classifier --instance-count 4 --address auto \\\n"
         "    --output-path s3://bucket/models --no-wait"),
        ("what SageMaker was given, but with more epochs",
         "rayfm train train.pbr --hyperparameters hyperparameters.json --epochs 50"),
    ],
)  # fmt: skip
@click.argument("train", nargs=-1, required=True, metavar="TRAIN...")
@hyperparameter_options
@_data_option("--validation", help="Data that decide which epoch is best; may be repeated.")
@_data_option("--test", help="Data measured once, at the end; may be repeated.")
@reading_options
@click.option(
    "--hyperparameters",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Hyperparameters as SageMaker's hyperparameters.json has them; options of the command line win.",
)
@click.option(
    "--instance-count",
    "--train-instance-count",
    "instance_count",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Number of workers.",
)
@click.option(
    "--worker-memory",
    type=byte_size,
    metavar="SIZE",
    help="Rows that a worker shuffles in memory, such as 4GiB; beyond that it does so block by block.",
)
@click.option(
    "--instance-type",
    "--train-instance-type",
    "instance_type",
    metavar="TYPE",
    help="CPUs and memory of a worker as a SageMaker instance type has them, such as ml.c5.2xlarge; the CPUs divided "
    "evenly when left out.",
)
@click.option(
    "--output-path", metavar="DIR", help="Where jobs are written; RAYFM_OUTPUT_PATH or ./rayfm-output when left out."
)
@click.option(
    "--job-name", metavar="NAME",
    help="Directory below the output path; the submission id of a job of Ray's, else the time, when left out.",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True, help="Go on with the job of this name from its newest checkpoint, if it has begun."
)
@address_option
@click.option("--max-run", type=click.IntRange(min=1), metavar="SECONDS", help="Stop the job after so long.")
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Follow the job to its end, or leave it to the cluster: see `rayfm jobs`.  [default: wait]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@debug_option
def train(
    train: tuple[str, ...],
    *,
    validation: tuple[str, ...],
    test: tuple[str, ...],
    options: Any,
    given: dict[str, Any],
    file: Path | None,
    instance_count: int,
    instance_type: str | None,
    worker_memory: int | None,
    max_run: int | None,
    wait: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Train a factorization machine on files, folders or buckets.

    TRAIN names RecordIO-protobuf, Parquet or libsvm files, folders of them, prefixes or manifests. The job's
    directory, <output path>/<job name>, gets the model, its metrics and the job's status. A terminal shows the run
    live; elsewhere the lines of SageMaker's log are printed.
    """
    values = settled_hyperparameters(file, given)

    from rayfm.errors import StoppedError
    from rayfm.progress import watching
    from rayfm.training import driver

    settings = {
        "validation": list(validation) or None,
        "test": list(test) or None,
        "hyperparameters": values,
        "train_instance_count": instance_count,
        "train_instance_type": instance_type,
        "options": options,
        "worker_memory_bytes": worker_memory,
        "max_run_s": max_run,
        **rest,
    }
    try:
        if not wait:
            _leave(driver.submit(list(train), **settings), quiet=quiet)
            return
        with watching(quiet=quiet) as watcher:
            result = driver.train(list(train), watcher=watcher, **settings)
    except StoppedError as stopped:
        raise click.Abort(str(stopped)) from stopped
    if not quiet:
        click.echo(f"model: {result.model_uri}")
        click.echo(f"its epoch: {result.best_epoch + 1} of {len(result.history)}")
        click.echo(listed(result.metrics, "  "))


def _leave(job: TrainingJob, *, quiet: bool) -> None:
    """Name a job and leave it to the cluster; one on this command's own Ray would end with the command."""
    from rayfm.training import cluster

    click.echo(job.name)
    if not quiet:
        click.echo(f"`rayfm jobs follow {job.directory.uri}` shows how it goes on.", err=True)
    if cluster.is_embedded():
        click.echo("The job runs on a Ray of this command's own, which waits for it: no cluster was named.", err=True)
        job.wait()
