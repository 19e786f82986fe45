"""What every kind of model file holds: the parameters, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import ModelFileError
from rayfm.hyperparameters import PREDICTOR_TYPES

MAX_DEPTH = 16
"""How deep facts may be nested; Python itself fails at some hundreds, wherever it goes through them."""
_CHUNK_VALUES = 1 << 20


class ModelParts(NamedTuple):
    """The parts of a model, in the order of `FactorizationMachine`, whose attributes say what each is.

    `hyperparameters`, `metrics` and `facts` are plain JSON data.
    """

    bias: float
    linear: NDArray[np.float32]
    factors: NDArray[np.float32]
    predictor_type: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, float]
    facts: dict[str, Any]

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return len(self.linear)

    @property
    def num_factors(self) -> int:
        """Length of a feature's factor vector."""
        return int(self.factors.shape[1])

    def check(self) -> None:
        """Check that the parts make a model; values of parameters are not looked at.

        Raises
        ------
        ModelFileError
            If a shape, a type, the task or something known of the model is none that a model can have.
        """
        if self.factors.ndim != 2 or 0 in self.factors.shape:
            raise ModelFileError(f"shape of factors must have 2 dimensions >= 1, got {list(self.factors.shape)}.")
        if self.linear.shape != (len(self.factors),):
            raise ModelFileError(f"shape of linear must be {[len(self.factors)]}, got {list(self.linear.shape)}.")
        for name, array in (("linear", self.linear), ("factors", self.factors)):
            if array.dtype != np.float32:
                raise ModelFileError(f"type of {name} must be float32, got {array.dtype}.")
        if self.predictor_type not in PREDICTOR_TYPES:
            known = " or ".join(PREDICTOR_TYPES)
            raise ModelFileError(f"predictor_type must be {known}, got {str(self.predictor_type)[:40]!r}.")
        _check_values("hyperparameters", self.hyperparameters, str | int | float | None, "texts, numbers or null")
        _check_values("metrics", self.metrics, int | float | None, "numbers or null")
        if not is_shallow(self.facts):
            raise ModelFileError(f"facts of the model must be nested <= {MAX_DEPTH} deep.")
        if (base := self.facts.get("index_base")) not in (None, 0, 1):
            raise ModelFileError(f"index_base must be 0, 1 or null, got {str(base)[:40]!r}.")

    def check_finite(self) -> None:
        """Check that every parameter is a finite number; reads all of them once.

        Raises
        ------
        ModelFileError
            If one is not; names the first feature.
        """
        if not np.isfinite(self.bias):
            raise ModelFileError(f"bias must be finite in 32 bits, got {self.bias}.")
        for name, array in (("linear", self.linear), ("factors", self.factors)):
            rows = max(1, _CHUNK_VALUES * len(array) // max(array.size, 1))
            for start in range(0, len(array), rows):
                finite = np.isfinite(array[start : start + rows])
                if not finite.all():
                    feature, *rest = np.argwhere(~finite)[0].tolist()
                    got = array[(start + feature, *rest)]
                    raise ModelFileError(f"{name} of feature {start + feature} must be finite in 32 bits, got {got}.")


def is_shallow(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Tell whether JSON data is nested at most so many levels deep.

    >>> is_shallow({"a": [1]}, 2), is_shallow({"a": [1]}, 1), is_shallow(1, 0)
    (True, False, True)
    """
    if not isinstance(value, Mapping | list):
        return True
    children = value.values() if isinstance(value, Mapping) else value
    return levels > 0 and all(is_shallow(child, levels - 1) for child in children)


def _check_values(name: str, values: Mapping[str, Any], kinds: Any, expected: str) -> None:
    for key, value in values.items():
        if not isinstance(value, kinds):
            got = f"a {type(value).__name__} as {str(key)[:40]!r}"
            raise ModelFileError(f"{name} of the model must be {expected}, got {got}.")
