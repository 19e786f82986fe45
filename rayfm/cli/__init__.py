"""The command ``rayfm``.

Nothing here or in the modules of the commands imports Ray, Numba or pyarrow before a command runs that needs them,
so that ``--help``, completion and usage errors answer at once.
"""

from __future__ import annotations

import click

from rayfm import __version__
from rayfm.cli.command import CommandGroup, debug_option, show_warnings
from rayfm.cli.data import check, evaluate, predict, transform
from rayfm.cli.endpoints import deploy, endpoints
from rayfm.cli.jobs import jobs
from rayfm.cli.models import export, inspect
from rayfm.cli.report import report
from rayfm.cli.serve_config import serve_config
from rayfm.cli.training import train


@click.group(
    cls=CommandGroup,
    commands=[train, predict, transform, evaluate, inspect, export, check, deploy, endpoints, serve_config, jobs,
              report],
    invoke_without_command=True,
    examples=[
        ("train on two workers", "rayfm train ratings.parquet --num-factors 16 --predictor-type regressor \\\n"
         "    --instance-count 2 --job-name first"),
        ("score other rows with the model", "rayfm predict rayfm-output/first new.parquet --output scores.csv"),
        ("see what is in the model", "rayfm inspect rayfm-output/first"),
        ("serve it at http://127.0.0.1:8000/endpoints/first", "rayfm deploy rayfm-output/first --name first"),
    ],
)  # fmt: skip
@click.version_option(__version__, prog_name="rayfm", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, use and look into factorization machines, on this machine or on a Ray cluster.

    A command runs on the cluster that --address or RAY_ADDRESS names, in a job of Ray's or on a head node of the
    cluster launcher on that cluster, else on a Ray of its own that ends with it. It exits with 0 when all is well, 1
    for an error or for problems found, 2 for wrong usage and 130 when interrupted.
    """
    show_warnings()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run the command line of this process and exit."""
    cli.main(prog_name="rayfm")
