"""What every kind of model file holds: the parameters, and what is known of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import ModelFileError
from rayfm.hyperparameters import PREDICTOR_TYPES


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
        """Check that the parts make a model.

        Raises
        ------
        ModelFileError
            If a shape, a type or the task is none that a model can have.
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
