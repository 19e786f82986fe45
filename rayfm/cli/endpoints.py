"""``rayfm deploy`` and ``rayfm endpoints``: models that answer over HTTP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from rayfm.cli.command import Command, CommandGroup, GroupedOption, debug_option
from rayfm.cli.models import aligned, as_json, listed
from rayfm.cli.options import byte_size

if TYPE_CHECKING:
    from rayfm.serving.endpoint import Endpoint

LIMITS, KEYS, SERVER = "Limits of a replica", "API keys", "The server that all endpoints of a cluster share"


def option_under(heading: str, *flags: str, **rest: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an option that ``--help`` lists under a heading."""
    return click.option(*flags, cls=GroupedOption, heading=heading, **rest)


_ENDPOINT_OPTIONS = (
    click.option("--name", required=True, metavar="NAME", help="Name of the endpoint: letters, digits and hyphens."),
    click.option("--instance-count", "--initial-instance-count", "instance_count", type=click.IntRange(min=1),
                 metavar="N", help="Replicas, processes with a CPU each.  [default: 1]"),
    click.option("--max-instance-count", type=click.IntRange(min=1), metavar="N",
                 help="Most replicas: their number follows the pending requests."),
    click.option("--at-root/--not-at-root", default=None,
                 help="Also answer at the root of the server, as a SageMaker container."),
    click.option("--access-log/--no-access-log", default=None, help="Log each request, as JSON.  [default: log]"),
    option_under(LIMITS, "--max-body", "max_body_bytes", type=byte_size, metavar="SIZE",
                 help="Size of a request, such as 25MiB; 413 above.  [default: 6MiB]"),
    option_under(LIMITS, "--max-rows", type=click.IntRange(min=1), metavar="N",
                 help="Rows of a request; 413 above.  [default: 1000000]"),
    option_under(LIMITS, "--max-nonzeros", type=click.IntRange(min=1), metavar="N",
                 help="Stored values of a request; 413 above.  [default: 50000000]"),
    option_under(LIMITS, "--max-pending", type=click.IntRange(min=1), metavar="N",
                 help="Requests that a replica holds at a time; 503 above.  [default: 256]"),
    option_under(LIMITS, "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                 help="How long a request may take.  [default: 60]"),
    option_under(KEYS, "--api-key-file", type=click.Path(dir_okay=False), metavar="FILE",
                 help="A key on each line, of which requests must show one; RAYFM_API_KEY for a new endpoint."),
    option_under(KEYS, "--no-api-key", is_flag=True, help="Let anybody ask."),
)  # fmt: skip


def endpoint_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is said of an endpoint; None where it is not given. `Limits` come under their own names."""
    for option in reversed(_ENDPOINT_OPTIONS):
        function = option(function)
    return function


def check_keys(file: str | None, none: bool) -> None:
    """See that keys are not both given and refused."""
    if none and file:
        raise click.UsageError("--no-api-key and --api-key-file cannot be given together.")


def told_keys(file: str | None, none: bool, *, is_new: bool) -> list[str] | None:
    """Return the API keys that an endpoint is to have, None to leave those it has."""
    from rayfm.serving.keys import known_keys

    return [] if none else known_keys(file) if file or is_new else None


def cluster_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--address``."""
    return click.option(
        "--address", metavar="ADDRESS",
        help="Ray cluster of the endpoints, such as ray://head:10001 or auto; RAY_ADDRESS when left out.",
    )(function)  # fmt: skip


def url_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--url``, which stands for RAYFM_ENDPOINT_URL."""

    def remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        import os

        from rayfm.serving.urls import URL_VARIABLE

        if value:
            os.environ[URL_VARIABLE] = value

    return option_under(
        SERVER, "--url", metavar="URL", expose_value=False, callback=remember,
        help="Where endpoints are; its port is the one to listen at. RAYFM_ENDPOINT_URL, or http://127.0.0.1:8000, "
        "when left out.",
    )(function)  # fmt: skip


@click.command(
    cls=Command,
    examples=[
        ("on this machine, until Ctrl-C", "rayfm deploy rayfm-output/first --name first"),
        ("on a cluster, where it goes on; two to eight replicas, as requests come",
         "rayfm deploy s3://bucket/models/clicks --name clicks --address auto \\\n"
         "    --instance-count 2 --max-instance-count 8"),
        ("a new model for an endpoint, which answers all the while",
         "rayfm deploy s3://bucket/models/clicks-2 --name clicks --address auto"),
        ("for whoever has a key, on all interfaces, with TLS",
         "rayfm deploy m.safetensors --name clicks --api-key-file keys --host 0.0.0.0 \\\n"
         "    --url https://models.example.org:8443 --tls-certificate cert.pem --tls-key key.pem"),
        ("as a SageMaker container: POST /invocations, GET /ping",
         "rayfm deploy model.tar.gz --name fm --at-root --url http://127.0.0.1:8080"),
    ],
)  # fmt: skip
@click.argument("model")
@endpoint_options
@url_option
@option_under(SERVER, "--host", metavar="ADDRESS",
              help="Interface to listen on, 0.0.0.0 for all.  [default: 127.0.0.1]")  # fmt: skip
@option_under(SERVER, "--tls-certificate", metavar="FILE", help="PEM file, on the head node of the cluster.")
@option_under(SERVER, "--tls-key", metavar="FILE", help="PEM file of its key.")
@cluster_option
@debug_option
def deploy(
    model: str,
    *,
    name: str,
    instance_count: int | None,
    max_instance_count: int | None,
    at_root: bool | None,
    access_log: bool | None,
    api_key_file: str | None,
    no_api_key: bool,
    address: str | None,
    **rest: Any,
) -> None:
    """Serve a model over HTTP.

    MODEL is a model file or the directory of a training job. An endpoint of that NAME gets the new model without a
    gap, and keeps what is not said anew. On a cluster the endpoint goes on when the command is done; without one, a
    Ray is started for the command, which serves until it is interrupted.
    """
    from rayfm.serving import endpoint
    from rayfm.training import cluster

    check_keys(api_key_file, no_api_key)
    server = given_of(rest, "host", "tls_certificate", "tls_key")
    limits = given_of(rest, *(field.name for field in fields(endpoint.Limits)))
    cluster.connect(address)
    present = {other.name: other for other in endpoint.list_endpoints()}.get(name)
    keys = told_keys(api_key_file, no_api_key, is_new=present is None)
    try:
        deployed = endpoint.deploy(
            model,
            name,
            replicas=instance_count,
            max_replicas=max_instance_count,
            limits=replace(present.limits if present else endpoint.Limits(), **limits) if limits else None,
            api_keys=keys,
            access_log=access_log,
            at_root=at_root,
            server=endpoint.ServerOptions(**server) if server else None,
        )
    except KeyboardInterrupt:
        state = f"endpoint {name} is as it was" if present else f"there is no endpoint {name}"
        raise click.Abort(f"interrupted; {state}.") from None
    click.echo(f"{deployed.url}/invocations")
    if cluster.is_embedded():
        _serve_until_interrupted(name)


def given_of(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the options that are given."""
    return {name: options[name] for name in names if options[name] is not None}


def _serve_until_interrupted(name: str) -> None:
    from rayfm.serving import endpoint

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    click.echo("Serving until Ctrl-C. For endpoints that go on by themselves, name a cluster with --address.", err=True)
    ended.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # whoever asks twice does not want to wait
    click.echo("rayfm: answering what is pending, then ending.", err=True)
    endpoint.delete(name)


@click.command(
    "list",
    cls=Command,
    examples=[
        ("those of a cluster", "rayfm endpoints list --address auto"),
        (
            "those that are not well",
            "rayfm endpoints list --address auto --json | jq -r '.[] | select(.status!=\"InService\").name'",
        ),
    ],
)
@cluster_option
@url_option
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
@debug_option
def list_command(*, wants_json: bool, address: str | None) -> None:
    """List endpoints by name."""
    from rayfm.serving.endpoint import list_endpoints

    found = list_endpoints(address=address)
    if wants_json:
        click.echo(as_json([asdict(endpoint) for endpoint in found]))
    elif found:
        rows = [("name", "status", "replicas", "revision", "model")]
        rows += [(each.name, each.status, _replicas(each), each.revision, each.model_uri) for each in found]
        click.echo(aligned(rows))
    else:
        click.echo("rayfm: there are no endpoints.", err=True)


@click.command(
    cls=Command,
    examples=[
        ("what it serves, within which limits", "rayfm endpoints show clicks --address auto"),
        ("its URL, for a script", "rayfm endpoints show clicks --address auto --json | jq -r .url"),
    ],
)
@click.argument("name")
@cluster_option
@url_option
@click.option("--json", "wants_json", is_flag=True, help="Print JSON.")
@debug_option
def show(name: str, *, wants_json: bool, address: str | None) -> None:
    """Show what is known of an endpoint."""
    described = asdict(_found(name, address))
    if wants_json:
        click.echo(as_json(described))
    else:
        limits = described.pop("limits")
        click.echo(f"{listed(described)}\n\nlimits\n{listed(limits, '  ')}")


@click.command(cls=Command, examples=[("by its name", "rayfm endpoints delete clicks --address auto")])
@click.argument("name")
@cluster_option
@debug_option
def delete(name: str, *, address: str | None) -> None:
    """Delete an endpoint, when the requests that are pending are answered."""
    from rayfm.serving import endpoint

    _found(name, address)
    endpoint.delete(name, address=address)
    click.echo(f"{name} is deleted.")


@click.group(
    cls=CommandGroup,
    commands=[list_command, show, delete],
    invoke_without_command=True,
    examples=[("what there is", "rayfm endpoints list --address auto")],
)
@debug_option
@click.pass_context
def endpoints(context: click.Context) -> None:
    """List, show and delete the endpoints of a cluster; `rayfm deploy` makes and updates them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _found(name: str, address: str | None) -> Endpoint:
    """Look an endpoint up, or say which one may have been meant."""
    from rayfm.errors import EndpointError
    from rayfm.serving.endpoint import describe, list_endpoints

    try:
        return describe(name, address=address)
    except EndpointError as error:
        near = get_close_matches(name, [other.name for other in list_endpoints(address=address)], n=1)
        if not near:
            raise
        raise EndpointError(f"there is no endpoint {name!r}. Did you mean {near[0]!r}?") from error


def _replicas(endpoint: Endpoint) -> str:
    least, most = endpoint.min_replicas, endpoint.max_replicas
    return str(endpoint.replicas) if least == most else f"{endpoint.replicas} of {least} to {most}"
