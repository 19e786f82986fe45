"""The constructor's keywords that come from SageMaker's base class, by their names in version 1 and 2 of its SDK.

`KEYWORDS` is the one list of them and says what each does here.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword.

    Attributes
    ----------
    name
        In version 1, which is also the name of the estimator's attribute.
    here
        What it does here.
    v2_name
        In version 2, where it differs.
    default
        Value when it is not given.
    warns
        Whether to say that it has no effect, since who gives it relies on it.
    """

    name: str
    here: str
    v2_name: str = ""
    default: Any = None
    warns: bool = False


RECORDED = "Recorded; has no effect here"

KEYWORDS = (
    Keyword("train_instance_count", "Number of workers, one actor each.", "instance_count", 1),
    Keyword(
        "train_instance_type",
        "Resources of one worker; left out or `local`: the cluster's CPUs divided evenly.",
        "instance_type",
    ),
    Keyword("output_path", "Folder or URI below which a job's directory is made; RAYFM_OUTPUT_PATH or rayfm-output."),
    Keyword("base_job_name", "What the names of jobs and endpoints begin with; factorization-machines."),
    Keyword("train_max_run", "Seconds after which a job is stopped; no limit here unless given.", "max_run"),
    Keyword("tags", "Recorded with the job."),
    Keyword("sagemaker_session", "Kept as an attribute and passed on; nothing here needs one."),
    Keyword("input_mode", "File and Pipe are the same here: files are read in pieces, once.", default="File"),
    Keyword("metric_definitions", "Kept; the metrics of factorization machines are fixed, as in SageMaker."),
    Keyword("train_volume_size", f"{RECORDED}: nothing is copied to a volume.", "volume_size", 30),
    Keyword("train_volume_kms_key", f"{RECORDED}.", "volume_kms_key", warns=True),
    Keyword("output_kms_key", f"{RECORDED}: set the bucket's default encryption.", warns=True),
    Keyword("subnets", f"{RECORDED}: the cluster has its network."),
    Keyword("security_group_ids", f"{RECORDED}: the cluster has its network."),
    Keyword("encrypt_inter_container_traffic", f"{RECORDED}: see Ray's TLS settings.", default=False, warns=True),
    Keyword("enable_network_isolation", f"{RECORDED}.", default=False, warns=True),
    Keyword("model_uri", f"{RECORDED}: training starts anew, also in SageMaker's algorithm.", warns=True),
    Keyword("model_channel_name", f"{RECORDED}.", default="model"),
    Keyword("train_use_spot_instances", f"{RECORDED}: the cluster has its machines.", "use_spot_instances", False),
    Keyword("train_max_wait", f"{RECORDED}: it belongs to spot instances.", "max_wait"),
    Keyword("checkpoint_s3_uri", f"{RECORDED}: SageMaker's algorithm writes no checkpoints either."),
    Keyword("checkpoint_local_path", f"{RECORDED}: SageMaker's algorithm writes no checkpoints either."),
    Keyword("rules", f"{RECORDED}: there is no SageMaker Debugger."),
    Keyword("debugger_hook_config", f"{RECORDED}: there is no SageMaker Debugger."),
    Keyword("tensorboard_output_config", f"{RECORDED}: there is no SageMaker Debugger."),
    Keyword("profiler_config", f"{RECORDED}: there is no SageMaker Debugger."),
    Keyword("disable_profiler", f"{RECORDED}: there is no SageMaker Debugger."),
    Keyword("enable_sagemaker_metrics", f"{RECORDED}: metrics.jsonl always has them."),
    Keyword("keep_alive_period_in_seconds", f"{RECORDED}: the cluster keeps its machines."),
    Keyword("max_retry_attempts", f"{RECORDED}: a failed job is not started again.", warns=True),
    Keyword("environment", f"{RECORDED}: set variables where Ray is started.", warns=True),
)

V1_NAMES = {keyword.v2_name: keyword.name for keyword in KEYWORDS if keyword.v2_name}
"""Names of version 1 by those of version 2, where they differ."""

_BY_NAME = {keyword.name: keyword for keyword in KEYWORDS}


class Alias:
    """An attribute that is another attribute of the object by its name in version 2 of the SDK."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__doc__ = f"`{name}`, by its name in version 2."

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(instance, self._name, value)


def settled(given: Mapping[str, Any], others: Collection[str]) -> dict[str, Any]:
    """Return the value of every keyword by its name in version 1; logs what has no effect though one relies on it.

    Parameters
    ----------
    given
        Values by either name; None counts as not given.
    others
        The constructor's other legal names, for the error about an unknown one.

    Raises
    ------
    TypeError
        If a name is unknown, or both names of a keyword were given with different values.
    """
    values: dict[str, Any] = {}
    for given_name, value in given.items():
        name = V1_NAMES.get(given_name, given_name)
        if name not in _BY_NAME:
            raise TypeError(_unknown(given_name, others))
        if value is None:
            continue
        if name in values and values[name] != value:
            names = f"{name} and {next(new for new, old in V1_NAMES.items() if old == name)}"
            raise TypeError(f"{names} must be the same, got {values[name]!r} and {value!r}. Give one of them.")
        values[name] = value
    for name, value in values.items():
        if _BY_NAME[name].warns and value:
            logger.warning("%s=%r: %s", name, value, _BY_NAME[name].here)
    return {keyword.name: values.get(keyword.name, keyword.default) for keyword in KEYWORDS}


def _unknown(name: str, others: Collection[str]) -> str:
    text = f"FactorizationMachines() got an unexpected keyword argument {name!r}."
    near = difflib.get_close_matches(name, [*others, *_BY_NAME, *V1_NAMES], n=1)
    return f"{text} Did you mean {near[0]}?" if near else text
