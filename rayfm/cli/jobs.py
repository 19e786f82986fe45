"""``rayfm jobs``: training jobs, whichever process started them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from rayfm.cli.command import Command, CommandGroup, Function, debug_option
from rayfm.cli.models import aligned, as_json, listed

if TYPE_CHECKING:
    from rayfm.training.jobs import TrainingJob


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--output-path`` and ``--address``, which say where to look for jobs."""
    path = click.option(
        "--output-path", metavar="DIR",
        help="Where jobs are written; RAYFM_OUTPUT_PATH, or rayfm-output, when left out.",
    )  # fmt: skip
    address = click.option(
        "--address", metavar="ADDRESS",
        help="Ray cluster on which to look too, such as ray://head:10001 or auto; RAY_ADDRESS when left out.",
    )  # fmt: skip
    return path(address(function))


def json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option("--json", "wants_json", is_flag=True, help="Print JSON.")(function)


@click.command(
    "list",
    cls=Command,
    examples=[
        ("those of this folder", "rayfm jobs list"),
        ("those of a bucket and of a cluster", "rayfm jobs list --output-path s3://bucket/models --address auto"),
        ("the names of those that failed", "rayfm jobs list --json | jq -r '.[] | select(.status==\"Failed\").name'"),
    ],
)
@place_options
@json_option
@debug_option
def list_command(*, wants_json: bool, output_path: str | None, address: str | None) -> None:
    """List training jobs, the newest first.

    Shows the epochs that are done and the last epoch's measure that decides which epoch is best.
    """
    from rayfm.training.job import default_output_path
    from rayfm.training.jobs import list_jobs

    found = [summary(job, job.describe()) for job in list_jobs(output_path, address=address)]
    if wants_json:
        click.echo(as_json(found))
    elif found:
        click.echo(table(found))
    else:
        click.echo(f"rayfm: there are no jobs in {output_path or default_output_path()}.", err=True)


@click.command(
    cls=Command,
    examples=[
        ("by its name", "rayfm jobs show first"),
        ("by its directory", "rayfm jobs show s3://bucket/models/first"),
        ("its best epoch, for a script", "rayfm jobs show first --json | jq .best_epoch"),
    ],
)
@click.argument("name")
@place_options
@json_option
@debug_option
def show(name: str, *, wants_json: bool, **place: Any) -> None:
    """Show what is known of a training job.

    Its status and why it failed, its settings and its metrics. NAME is the job's name or its directory.
    """
    job = found_job(name, **place)
    described = job.describe()
    if wants_json:
        uris = {"directory": job.directory.uri, "model": job.directory.model_uri}
        click.echo(as_json({**described, **uris, "epochs_done": summary(job, described)["epochs_done"]}))
    else:
        click.echo(rendered(job, described))


@click.command(
    cls=Command,
    examples=[
        ("one that another process started", "rayfm jobs follow first"),
        ("wait for it, then use its model",
         "rayfm jobs follow first --quiet && rayfm predict rayfm-output/first new.parquet"),
    ],
)  # fmt: skip
@click.argument("name")
@place_options
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@debug_option
def follow(name: str, *, quiet: bool, **place: Any) -> None:
    """Follow a training job from its beginning to its end.

    NAME is the job's name or its directory. A terminal shows the run live; elsewhere the lines of SageMaker's log are
    printed. Ctrl-C ends the watching, not the job. Exits with 1 when the job failed or was stopped.
    """
    from rayfm.errors import JobFailedError, RayfmError
    from rayfm.progress import watching

    job = found_job(name, **place)
    try:
        with watching(quiet=quiet) as watcher:
            result = job.wait(watcher)
    except KeyboardInterrupt:
        raise click.Abort(f"{job.name} goes on; `rayfm jobs stop {name}` stops it.") from None
    except RayfmError as error:
        described = job.describe()
        if described["status"] not in ("Failed", "Stopped"):
            raise
        raise JobFailedError(job.name, described["status"], described.get("reason") or str(error)) from error
    if not quiet:
        click.echo(f"model: {result.model_uri}")
        click.echo(listed(result.metrics, "  "))


@click.command(
    cls=Command,
    examples=[
        ("by its name", "rayfm jobs stop first"),
        ("one on a cluster", "rayfm jobs stop first --address ray://head:10001"),
    ],
)
@click.argument("name")
@place_options
@debug_option
def stop(name: str, **place: Any) -> None:
    """Stop a training job and wait until it has stopped.

    NAME is the job's name or its directory. A job that is stopped writes no model.
    """
    from rayfm.training.job import RUNNING

    job = found_job(name, **place)
    status = job.describe()["status"]
    if status not in RUNNING:
        click.echo(f"{job.name} is over already: {status}.")
        return
    job.stop()
    status = job.describe()["status"]
    click.echo(f"{job.name} has stopped." if status == "Stopped" else f"{job.name} ended before that: {status}.")


@click.group(
    cls=CommandGroup,
    commands=[list_command, show, follow, stop],
    invoke_without_command=True,
    examples=[
        ("what there is", "rayfm jobs list"),
        ("watch one that another process started", "rayfm jobs follow first"),
    ],
)
@debug_option
@click.pass_context
def jobs(context: click.Context) -> None:
    """List, show, follow and stop training jobs.

    A job is found by its name below the output path or, while it runs, on the Ray cluster that --address or
    RAY_ADDRESS names; or by its directory.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def found_job(name: str, *, output_path: str | None, address: str | None) -> TrainingJob:
    """Find a job, or say which one may have been meant.

    Raises
    ------
    StorageError
        If there is no such job.
    """
    from rayfm.errors import StorageError
    from rayfm.training.jobs import TrainingJob, list_jobs

    try:
        return TrainingJob.attach(name, output_path=output_path, address=address)
    except StorageError as error:
        if "/" in name:
            raise
        near = get_close_matches(name, [job.name for job in list_jobs(output_path, address=address)], n=1)
        if not near or near[0] == name:
            raise
        raise StorageError(f"there is no training job {name!r}. Did you mean {near[0]!r}?") from error


def summary(job: TrainingJob, described: dict[str, Any]) -> dict[str, Any]:
    """Return what `list` says of a job with such a job.json, JSON's types only."""
    from rayfm.progress.wording import iso

    epochs = [event for event in job.directory.read_events() if event["event"] == "epoch"]
    return {
        "name": job.name,
        "status": described["status"],
        "started": iso(described["started"]),
        "seconds": seconds_of(described),
        "epochs_done": len(epochs),
        "epochs": described["hyperparameters"]["epochs"],
        "measure": _deciding_measure(described["hyperparameters"], epochs),
        "directory": job.directory.uri,
    }


def _deciding_measure(hyperparameters: dict[str, Any], epochs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the last epoch's value, by name, of what decides which epoch is best; nothing before the first."""
    from rayfm.metrics import default_metric, metric_named

    kind, wanted = hyperparameters["predictor_type"], hyperparameters.get("early_stopping_metric")
    metric = metric_named(wanted, kind) if wanted else default_metric(kind)
    names = [f"{channel}:{metric.name}" for channel in ("validation", "train")]
    measured = next((name for name in names if epochs and name in epochs[-1]), None)
    return {measured: epochs[-1][measured]} if measured else {}


def seconds_of(described: dict[str, Any]) -> float:
    """Return how long a job took, or has been running."""
    from rayfm.training.job import RUNNING

    now = time.time() if described["status"] in RUNNING else described["alive"]
    return float(max(0.0, (described.get("ended") or now) - described["started"]))


def table(found: Iterable[dict[str, Any]]) -> str:
    """Lay out summaries, a line each under a header."""
    from rayfm.progress.wording import duration

    rows = [("name", "status", "started (UTC)", "duration", "epochs", "last measure")]
    for job in found:
        rows.append(
            (
                job["name"],
                job["status"],
                job["started"].replace("T", " ").rstrip("Z"),
                duration(job["seconds"]),
                f"{job['epochs_done']}/{job['epochs']}",
                "".join(_worded(*measure) for measure in job["measure"].items()),
            )
        )
    return aligned(rows)


def _worded(name: str, value: float | None) -> str:
    return f"{name.replace(':', ' ')} {'nan' if value is None else f'{value:.5g}'}"


def rendered(job: TrainingJob, described: dict[str, Any]) -> str:
    """Lay out what is known of a job, for people."""
    from rayfm.progress.wording import duration

    short = summary(job, described)
    plain = {
        "name": job.name,
        "status": described["status"],
        "reason": described.get("reason"),
        "directory": job.directory.uri,
        "started": short["started"],
        "duration": duration(short["seconds"]),
        "workers": described["train_instance_count"],
        "epochs": f"{short['epochs_done']} of {short['epochs']}",
        "best epoch": described["best_epoch"] + 1 if "best_epoch" in described else None,
        "seed": described.get("seed"),
        "last measure": "".join(_worded(*measure) for measure in short["measure"].items()) or None,
    }
    sections = [listed({name: value for name, value in plain.items() if value is not None})]
    for name in ("channels", "metrics", "hyperparameters", "details", "versions"):
        values = {key: value for key, value in (described.get(name) or {}).items() if value is not None}
        if values:
            sections.append(f"{name}\n{listed(values, '  ')}")
    return "\n\n".join(sections)
