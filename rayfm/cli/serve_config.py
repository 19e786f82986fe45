"""``rayfm serve-config``: an endpoint as a Serve config, for whoever declares what is to run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayfm.cli.command import Command, debug_option
from rayfm.cli.endpoints import SERVER, check_keys, endpoint_options, given_of, option_under, told_keys, url_option

if TYPE_CHECKING:
    from rayfm.serving.config import Declaration


@click.command(
    "serve-config",
    cls=Command,
    examples=[
        ("for `serve deploy serve.yaml`", "rayfm serve-config s3://bucket/models/clicks --name clicks > serve.yaml"),
        ("a second endpoint, or a new model for one that is there",
         "rayfm serve-config s3://bucket/models/films --name films --into serve.yaml"),
        ("for serveConfigV2 of KubeRay's RayService, where Kubernetes guards the port",
         "rayfm serve-config s3://bucket/models/clicks --name clicks --host 0.0.0.0 \\\n"
         "    --instance-count 2 --max-instance-count 8"),
    ],
)  # fmt: skip
@click.argument("model")
@endpoint_options
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Serve config to put the endpoint into, beside what it declares; made if it is not there."
              )  # fmt: skip
@click.option("--revision", metavar="TEXT", help="Tells this deployment from the next; made from the time when left "
              "out.")  # fmt: skip
@url_option
@option_under(SERVER, "--host", metavar="ADDRESS",
              help="Interface to listen on, 0.0.0.0 for all.  [default: 127.0.0.1]")  # fmt: skip
@debug_option
def serve_config(model: str, *, into: Path | None, host: str | None, **rest: Any) -> None:
    """Write an endpoint as a Serve config.

    MODEL is a model file or the directory of a training job, at a place that the cluster can read; it is not looked
    at here. `serve deploy` brings a Serve config to a cluster, KubeRay's RayService has it as serveConfigV2. Whatever
    is not in the config any more is deleted then; endpoints that `rayfm deploy` made are left alone. An endpoint that
    is in FILE gets the new model and keeps what is not said anew. Needs no Ray.
    """
    from rayfm.serving import config
    from rayfm.storage import atomic_writer

    known = config.read(into.read_text(), str(into)) if into is not None and into.exists() else config.new_config()
    known = config.listening(known, host, config.told_port())
    declared = _declaration(model, known, **rest)
    _warn_if_open(declared, known)
    text = config.write(config.with_endpoint(known, declared))
    if into is None:
        click.echo(text, nl=False)
    else:
        with atomic_writer(into) as file:
            file.write(text.encode())


def _warn_if_open(declared: Declaration, known: dict[str, Any]) -> None:
    from rayfm.serving.urls import LOOPBACK

    host = known["http_options"].get("host", "0.0.0.0")  # Serve's own default
    if host not in LOOPBACK and not declared.settings.key_digests:
        problem = f"whoever reaches {host} may ask the endpoint. Give it API keys, or ask for them before it."
        click.echo(f"rayfm: warning: {problem}", err=True)


def _declaration(
    model: str,
    known: dict[str, Any],
    *,
    name: str,
    instance_count: int | None,
    max_instance_count: int | None,
    at_root: bool | None,
    access_log: bool | None,
    api_key_file: str | None,
    no_api_key: bool,
    revision: str | None,
    **limits: Any,
) -> Declaration:
    """Settle what is said of the endpoint, and what the config says of it where nothing is said anew."""
    from rayfm.serving import keys
    from rayfm.serving.config import Declaration, declared_in
    from rayfm.serving.names import check_name
    from rayfm.serving.settings import Limits, Settings, check_replicas, new_revision, settled_replicas
    from rayfm.storage import absolute

    check_keys(api_key_file, no_api_key)
    check_name(name)
    check_replicas(instance_count, max_instance_count)
    uri = absolute(model)
    present = declared_in(known, name)
    previous = present or Declaration(name, Settings(uri, ""))
    told = told_keys(api_key_file, no_api_key, is_new=present is None)
    settings = replace(
        previous.settings,
        model_uri=uri,
        revision=revision or new_revision(),
        limits=replace(previous.settings.limits, **given_of(limits, *(field.name for field in fields(Limits)))),
        key_digests=previous.settings.key_digests if told is None else keys.digests(told),
        access_log=previous.settings.access_log if access_log is None else access_log,
    )
    replicas = settled_replicas(instance_count, max_instance_count, previous.replicas)
    return Declaration(name, settings, replicas, previous.at_root if at_root is None else at_root)
