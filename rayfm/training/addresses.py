"""Which Ray cluster is meant, and whether anything is there.

A cluster is meant where an address is given or ``RAY_ADDRESS`` is set, in a job of Ray's, and on a head node that the
cluster launcher has set up (``ray up``, ``ray submit``). There nothing may fall back to a Ray of its own: it would
train on one machine while the others idle.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import yaml

from rayfm.training import submission

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"
"""The configuration of the cluster, which the launcher leaves on its head node."""

KNOCK_TIMEOUT_S = 5.0


def meant(address: str | None = None) -> str | None:
    """Return the address of the cluster that is meant, None for a Ray of this process's own."""
    named = address or os.environ.get("RAY_ADDRESS")
    if not named:
        return "auto" if submission.is_submitted() or launched_cluster() else None
    return None if named == "local" else named


def launched_cluster() -> str | None:
    """Return the name of the cluster of which the launcher has made this machine the head, None elsewhere."""
    try:
        found = yaml.safe_load(Path(LAUNCHER_FILE).expanduser().read_text())
    except (OSError, ValueError, RuntimeError, yaml.YAMLError):
        return None
    name = found.get("cluster_name") if isinstance(found, dict) else None
    return str(name) if name else None


def check(address: str) -> None:
    """See that an address can be a cluster's and that something listens there: Ray itself would try for minutes.

    Raises
    ------
    ValueError
        If it is the address of something else.
    OSError
        If nothing listens there.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(
            "that is a dashboard, which takes jobs (`ray job submit`) but no other commands; a cluster's address is "
            "host:port, ray://host:port, or auto on one of its machines"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S).close()


def has_gone(address: str | None, host: str | None) -> bool:
    """Tell whether no Ray cluster is any more at an address that a machine of the name `host` knew it by."""
    name = (address or "").rpartition(":")[0]
    if not name or (name.startswith("127.") and host != socket.gethostname()):
        return False
    try:
        check(str(address))
    except ConnectionRefusedError:
        return True
    except OSError:  # a machine that does not answer may only be out of reach
        pass
    return False


def remedy(address: str) -> str:
    """Return what to do when no cluster answers."""
    name = launched_cluster()
    if address == "auto" and name and not submission.is_submitted():
        own = "or name the address local for a Ray of the command's own"
        return f"{LAUNCHER_FILE} makes this machine the head of the cluster {name}: start it with `ray up`, {own}."
    return (
        "Start one with `ray start --head`, check the address and its token, or leave the address out to use an "
        "embedded Ray."
    )
