"""Every hyperparameter, once: name, type, range, default and meaning.

The error texts, the command line's options, the checks and the documentation are made from the fields of
`Hyperparameters`. Names, defaults, ranges and texts of the first part are Amazon SageMaker's; the second part is
what SageMaker lacks.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rayfm.errors import HyperparameterError

PREDICTOR_TYPES = ("binary_classifier", "regressor")
OPTIMIZERS = ("adam", "adagrad", "ftrl", "rowwise_adagrad")
INIT_METHODS = ("normal", "uniform", "constant")
MIN_FLOAT32, MAX_FLOAT32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Smallest normal and largest finite float32: the kernels compute in 32 bits."""

GROUPS = ("bias", "linear", "factors")
"""The three groups of parameters; each has its own rate, decay and initialisation."""

OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {
        "bias_lr": 0.1,
        "linear_lr": 0.001,
        "factors_lr": 0.0001,
        "bias_wd": 0.01,
        "linear_wd": 0.001,
        "factors_wd": 0.00001,
    },
    "adagrad": {
        "bias_lr": 0.05,
        "linear_lr": 0.05,
        "factors_lr": 0.05,
        "bias_wd": 0.0,
        "linear_wd": 0.0,
        "factors_wd": 0.0001,
        "factors_init_sigma": 0.03,
        "rescale_grad": 1.0,
    },
    "ftrl": {
        "bias_lr": 0.05,
        "linear_lr": 0.05,
        "factors_lr": 0.05,
        "bias_wd": 0.0,
        "linear_wd": 1.0,
        "factors_wd": 1.0,
        "factors_init_sigma": 0.03,
        "rescale_grad": 1.0,
    },
}
OPTIMIZER_DEFAULTS["rowwise_adagrad"] = OPTIMIZER_DEFAULTS["adagrad"]
"""Defaults that depend on the optimizer: rates and decays of one mean nothing to another."""


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One row of the table.

    Attributes
    ----------
    name
        As users write it.
    kind
        Type to which a given value is coerced.
    meaning
        One sentence for ``--help`` and the documentation.
    expecting
        Tail of SageMaker's error text; empty where it has none.
    valid
        Rule checked after coercion.
    default
        None where there is none, or where it depends on the optimizer (`OPTIMIZER_DEFAULTS`).
    choices
        The legal values of a string.
    sagemaker
        Whether SageMaker has it too.
    """

    name: str
    kind: type[int] | type[float] | type[str] | type[bool]
    meaning: str
    expecting: str = ""
    valid: Callable[[Any], bool] = lambda value: True
    default: Any = None
    choices: tuple[str, ...] = ()
    sagemaker: bool = True

    def coerce(self, value: Any) -> Any:
        """Return `value` as this hyperparameter's type, checked; None stays None.

        Raises
        ------
        HyperparameterError
            If the value is out of range; the text is SageMaker's.
        ValueError, TypeError, OverflowError
            Python's own when the value cannot be converted, as SageMaker's SDK lets them through; a note names
            the hyperparameter.
        """
        if value is None:
            return None
        try:
            coerced = _boolean(value) if self.kind is bool else self.kind(value)
        except (ValueError, TypeError, OverflowError) as error:
            error.add_note(f"The value {value!r} was given for the hyperparameter {self.name}.")
            raise
        if not self.valid(coerced):
            text = f"Invalid hyperparameter value {coerced} for {self.name}"
            raise HyperparameterError(f"{text}. Expecting: {self.expecting}" if self.expecting else text)
        return coerced


def _boolean(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError(f"must be true or false, got {value!r}")
    return words[str(value).lower()]


def _row(kind: Any, meaning: str, default: Any = None, **rest: Any) -> Any:
    return dataclasses.field(metadata={"kind": kind, "meaning": meaning, "default": default, **rest})


def _positive(meaning: str, default: Any = None, expecting: str = "An integer greater than zero", **rest: Any) -> Any:
    return _row(int, meaning, default, valid=lambda value: 0 < value < 2**63, expecting=expecting, **rest)


def _non_negative(meaning: str, default: Any = None, **rest: Any) -> Any:
    return _row(float, meaning, default, valid=lambda value: value >= 0, expecting="A non-negative float", **rest)


def _any_float(meaning: str, default: Any = None, **rest: Any) -> Any:
    return _row(float, meaning, default, expecting="A float value", **rest)


def _choice(meaning: str, choices: tuple[str, ...], default: Any = None, **rest: Any) -> Any:
    *first, last = [f'"{choice}"' for choice in choices]
    expecting = f"Value {', '.join(first)} or {last}"
    return _row(
        str, meaning, default, valid=lambda value: value in choices, expecting=expecting, choices=choices, **rest
    )


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Checked hyperparameters of one run, defaults filled in. Make them with `Hyperparameters.of`."""

    feature_dim: int | None = _positive("Number of features; taken from the training data when left out.", expecting="")
    num_factors: int = _positive("Length of each feature's factor vector.")
    predictor_type: str = _choice("Task: classify 0/1 labels, or predict a number.", PREDICTOR_TYPES)
    mini_batch_size: int = _positive("Rows of one update, per worker.", 1000, expecting="")
    epochs: int = _positive("Passes over the training data.", 1, expecting="An integer greater than 0")
    clip_gradient: float | None = _any_float("Limit each gradient to [-c, c]; off when 0, negative or left out.")
    eps: float = _any_float("Term that keeps Adam's and AdaGrad's division finite.", 1e-8)
    rescale_grad: float = _any_float("Factor of each gradient sum; 1/mini_batch_size for adam, else 1.")
    bias_lr: float = _non_negative("Learning rate of the bias.")
    linear_lr: float = _non_negative("Learning rate of the linear terms.")
    factors_lr: float = _non_negative("Learning rate of the factors.")
    bias_wd: float = _non_negative("Weight decay (L2) of the bias.")
    linear_wd: float = _non_negative("Weight decay (L2) of the linear terms.")
    factors_wd: float = _non_negative("Weight decay (L2) of the factors.")
    bias_init_method: str = _choice("How the bias starts.", INIT_METHODS, "normal")
    bias_init_scale: float | None = _non_negative("Half width of the uniform start of the bias.")
    bias_init_sigma: float = _non_negative("Standard deviation of the normal start of the bias.", 0.01)
    bias_init_value: float | None = _any_float("Constant start of the bias.")
    linear_init_method: str = _choice("How the linear terms start.", INIT_METHODS, "normal")
    linear_init_scale: float | None = _non_negative("Half width of the uniform start of the linear terms.")
    linear_init_sigma: float = _non_negative("Standard deviation of the normal start of the linear terms.", 0.01)
    linear_init_value: float | None = _any_float("Constant start of the linear terms.")
    factors_init_method: str = _choice("How the factors start.", INIT_METHODS, "normal")
    factors_init_scale: float | None = _non_negative("Half width of the uniform start of the factors.")
    factors_init_sigma: float = _non_negative("Standard deviation of the normal start of the factors.", 0.001)
    factors_init_value: float | None = _any_float("Constant start of the factors.")

    optimizer: str = _choice("Update rule.", OPTIMIZERS, "adam", sagemaker=False)
    linear_l1: float = _non_negative("L1 strength of the linear terms (ftrl).", 0.0, sagemaker=False)
    factors_l1: float = _non_negative("L1 strength of the factors (ftrl).", 0.0, sagemaker=False)
    ftrl_beta: float = _non_negative("Damping of the first steps of ftrl.", 1.0, sagemaker=False)
    seed: int | None = _row(
        int,
        "Seed of initialisation and shuffling; drawn and recorded when left out.",
        valid=lambda value: 0 <= value < 2**63,
        expecting="An integer from 0 to 2**63 - 1",
        sagemaker=False,
    )
    shuffle: bool = _row(bool, "Draw a new order of the rows in every epoch; else file order.", False, sagemaker=False)
    early_stopping_metric: str | None = _row(
        str, "Metric of the validation data that picks the best epoch; the task's loss when left out.", sagemaker=False
    )
    early_stopping_patience: int | None = _positive(
        "Stop after so many epochs without a better validation metric; never when left out.", sagemaker=False
    )
    rounds_per_epoch: int | None = _positive(
        "How often workers exchange what they learned in an epoch; chosen by rayfm when left out.", sagemaker=False
    )
    scale_rates: bool = _row(
        bool, "Scale the rates with the number of workers, so that nothing is retuned.", True, sagemaker=False
    )

    threads: int | None = _positive(
        "Most threads of a worker, its CPUs when left out. As many train as pay, and at most one for 64 rows of a "
        "mini-batch, unless they race.",
        sagemaker=False,
    )
    hogwild: bool = _row(
        bool,
        "Let threads update without waiting for each other: faster, never the same twice.",
        False,
        sagemaker=False,
    )

    @classmethod
    def of(cls, given: Mapping[str, Any] | None = None, /, **more: Any) -> Hyperparameters:
        """Coerce and check the given values and fill in the defaults; None counts as not given.

        Raises
        ------
        HyperparameterError
            If a name is unknown, a value is out of range, or a required one is missing.

        Examples
        --------
        >>> Hyperparameters.of(num_factors=8, predictor_type="regressor").rescale_grad
        0.001
        """
        values = {name: lookup(name).coerce(value) for name, value in {**(given or {}), **more}.items()}
        values = {name: value for name, value in values.items() if value is not None}
        for name in ("num_factors", "predictor_type"):
            if name not in values:
                raise HyperparameterError(f"{name} must be given. Expecting: {HYPERPARAMETERS[name].expecting}")
        defaults = {name: row.default for name, row in HYPERPARAMETERS.items()}
        defaults["rescale_grad"] = 1.0 / values.get("mini_batch_size", defaults["mini_batch_size"])
        defaults.update(OPTIMIZER_DEFAULTS[values.get("optimizer", defaults["optimizer"])])
        resolved = cls(**{**defaults, **values})
        resolved._check_together()
        return resolved

    def _check_together(self) -> None:
        """Check the rules that concern several values at once."""
        for group in GROUPS:
            method = getattr(self, f"{group}_init_method")
            needed = {"uniform": f"{group}_init_scale", "constant": f"{group}_init_value"}.get(method)
            if needed and getattr(self, needed) is None:
                raise HyperparameterError(f"{needed} must be given when {group}_init_method is {method}.")
        for name in ("linear_l1", "factors_l1"):
            if getattr(self, name) and self.optimizer != "ftrl":
                raise HyperparameterError(f"{name} must be 0 unless optimizer is ftrl, got {getattr(self, name)}.")
        for name, row in HYPERPARAMETERS.items():
            value = getattr(self, name)
            if row.kind is float and value is not None and not abs(value) <= MAX_FLOAT32:
                raise HyperparameterError(f"{name} must be finite in 32 bits, got {value}.")
        if self.optimizer != "ftrl" and not self.eps >= MIN_FLOAT32:
            raise HyperparameterError(f"eps must be >= {MIN_FLOAT32:.3g}, got {self.eps}: it keeps divisions finite.")
        if self.optimizer == "ftrl" and not self.ftrl_beta >= MIN_FLOAT32:
            raise HyperparameterError(f"ftrl_beta must be >= {MIN_FLOAT32:.3g}, got {self.ftrl_beta}.")

    @property
    def is_classifier(self) -> bool:
        """Whether labels are 0/1 and scores probabilities."""
        return self.predictor_type == "binary_classifier"

    def group(self, suffix: str) -> tuple[float, float, float]:
        """Return (bias, linear, factors) of one kind of value, such as ``lr`` or ``wd``."""
        bias, linear, factors = (float(getattr(self, f"{group}_{suffix}", 0.0)) for group in GROUPS)
        return bias, linear, factors

    def as_dict(self) -> dict[str, Any]:
        """Return all values that are not None, in the order of the table."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    field.name: Hyperparameter(name=field.name, **field.metadata) for field in dataclasses.fields(Hyperparameters)
}
"""The table, in the order of `Hyperparameters`."""


def lookup(name: str) -> Hyperparameter:
    """Return the row of `name`; an unknown name raises with SageMaker's text and the nearest legal name."""
    if name not in HYPERPARAMETERS:
        text = f"Additional properties are not allowed ('{name}' was unexpected)"
        near = difflib.get_close_matches(name, HYPERPARAMETERS, n=1)
        raise HyperparameterError(f"{text}. Did you mean {near[0]}?" if near else f"{text}.")
    return HYPERPARAMETERS[name]
