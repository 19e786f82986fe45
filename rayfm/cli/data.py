"""``rayfm predict``, ``rayfm evaluate`` and ``rayfm check``: commands that read rows."""

from __future__ import annotations

import sys
from typing import Any

import click

from rayfm.cli.command import FAILED, Command, Function, debug_option
from rayfm.cli.models import as_json, listed
from rayfm.cli.options import address_option, reading_options, unchecked
from rayfm.hyperparameters import HYPERPARAMETERS

CONTENT_TYPES = (
    "application/jsonlines",
    "application/json",
    "application/x-recordio-protobuf",
    "application/x-parquet",
    "text/csv",
)
"""Those of `rayfm.formats.scores`, which takes long to import."""

json_option = click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")


def keep_columns_option(function: Function) -> Function:
    """Add ``--keep-columns``; the command gets a tuple of names."""

    def names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip())

    return click.option(
        "--keep-columns", metavar="A,B,C", default="", callback=names,
        help="Parquet columns to write beside the scores; label is the label in any format. A uid is always written.",
    )(function)  # fmt: skip


@click.command(
    cls=Command,
    examples=[
        ("a file of scores", "rayfm predict rayfm-output/first new.parquet --output scores.csv"),
        ("the ten highest scores", "rayfm predict rayfm-output/first new.libsvm | jq .score | sort -gr | head"),
        ("from and to S3", "rayfm predict s3://bucket/models/first s3://bucket/new/ --output s3://bucket/scores.csv"),
    ],
)  # fmt: skip
@click.argument("model")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output", default="-", metavar="FILE", help="Where scores go, by its ending as text, "
              "Parquet, RecordIO or JSON Lines; - is the standard output, as JSON Lines.  [default: -]")  # fmt: skip
@keep_columns_option
@reading_options
@address_option
@debug_option
def predict(model: str, data: tuple[str, ...], **rest: Any) -> None:
    """Score rows with a model.

    MODEL is a model file or the directory of a training job, DATA as for training; labels are not needed. A score is
    the predicted number, or the probability of label 1. There is one per row, in the order of the rows.
    """
    from rayfm.training import scoring

    summary = scoring.predict(model, list(data), **rest)
    if summary.output != scoring.STANDARD_OUTPUT:
        click.echo(f"{summary.num_rows:,} rows scored in {summary.seconds:.1f} s: {summary.output}", err=True)


@click.command(
    cls=Command,
    examples=[
        ("a file of scores for every file", "rayfm transform rayfm-output/first new/ --output-path scores"),
        ("from and to S3, with two columns of the input",
         "rayfm transform s3://bucket/models/first s3://bucket/new/ --output-path s3://bucket/scores \\\n"
         "    --accept application/x-parquet --keep-columns user,item"),
    ],
)  # fmt: skip
@click.argument("model")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output-path", required=True, metavar="DIR", help="Folder for the files of scores, on any "
              "storage.")  # fmt: skip
@click.option("--accept", type=click.Choice(CONTENT_TYPES), default=CONTENT_TYPES[0], metavar="TYPE",
              help=f"Content type of the scores: {', '.join(CONTENT_TYPES)}.  [default: {CONTENT_TYPES[0]}]"
              )  # fmt: skip
@keep_columns_option
@reading_options
@address_option
@debug_option
def transform(model: str, data: tuple[str, ...], **rest: Any) -> None:
    """Score many files, each into a file of its own.

    MODEL is a model file or the directory of a training job, DATA as for training; labels are not needed. The scores
    of a file have its name, as seen from what was given, with .out behind, and the order of its rows. This is
    SageMaker's batch transform.
    """
    from rayfm.training import transform as batch

    summary = batch.transform(model, list(data), **rest)
    done = f"{summary.num_rows:,} rows of {summary.num_files:,} files scored in {summary.seconds:.1f} s"
    click.echo(f"{done}: {rest['output_path']}", err=True)


@click.command(
    cls=Command,
    examples=[
        ("how good the model is on other rows", "rayfm evaluate rayfm-output/first test.parquet"),
        ("one number, for a script", "rayfm evaluate rayfm-output/first test.parquet --json | jq .rmse"),
    ],
)
@click.argument("model")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@json_option
@reading_options
@address_option
@debug_option
def evaluate(model: str, data: tuple[str, ...], *, wants_json: bool, options: Any, address: str | None) -> None:
    """Measure a model on labelled rows.

    MODEL is a model file or the directory of a training job, DATA as for training.
    """
    from rayfm.training import scoring

    metrics = scoring.evaluate(model, list(data), options=options, address=address)
    if wants_json:
        click.echo(as_json(metrics))
    else:
        click.echo(listed(metrics))


@click.command(
    cls=Command,
    examples=[
        ("before training on it", "rayfm check train.libsvm --predictor-type binary_classifier"),
        ("against the model's width", "rayfm check s3://bucket/new/ --feature-dim 50000"),
    ],
)
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--feature-dim", type=click.IntRange(min=1), metavar="INTEGER", help="Width that no feature may exceed.")
@click.option(
    "--predictor-type", help="Task whose rules the labels must fulfil.", **unchecked(HYPERPARAMETERS["predictor_type"])
)
@json_option
@reading_options
@address_option
@debug_option
def check(data: tuple[str, ...], *, wants_json: bool, predictor_type: str | None, **rest: Any) -> None:
    """Look for everything that is wrong with data.

    Reads DATA as training would, tells what is in it, and lists the problems with examples and remedies. Exits with 1
    when there are problems that training would stop at.
    """
    predictor_type = HYPERPARAMETERS["predictor_type"].coerce(predictor_type)

    from rayfm.training import doctor

    report = doctor.check(list(data), predictor_type=predictor_type, **rest)
    click.echo(as_json(report.as_dict()) if wants_json else report.render())
    if not report.ok:
        sys.exit(FAILED)
