"""Hyperparameters as attributes that are checked whenever they are assigned.

The attributes are made from `rayfm.hyperparameters.HYPERPARAMETERS`; there is no second list of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayfm.hyperparameters import HYPERPARAMETERS, Hyperparameter


class HyperparameterAttribute:
    """An attribute with one hyperparameter's value: coerced and checked when assigned, None allowed.

    Reading it before it was assigned raises an AttributeError that says so; ``del`` makes it unassigned again.
    """

    def __init__(self, row: Hyperparameter) -> None:
        self._row = row
        self.__doc__ = row.meaning

    def __get__(self, instance: HasHyperparameters | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        self._check_assigned(instance)
        return instance._given[self._row.name]

    def __set__(self, instance: HasHyperparameters, value: Any) -> None:
        instance._given[self._row.name] = self._row.coerce(value)

    def __delete__(self, instance: HasHyperparameters) -> None:
        self._check_assigned(instance)
        del instance._given[self._row.name]

    def _check_assigned(self, instance: HasHyperparameters) -> None:
        if self._row.name not in instance._given:
            raise AttributeError(f"{self._row.name} must be assigned before it is read. {self._row.meaning}")


class HasHyperparameters:
    """Base of a class whose attributes are the hyperparameters of `rayfm.Hyperparameters`.

    An attribute keeps the place in the order in which it was first assigned, also with None.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy, shallow ones too, hyperparameters of its own."""
        return {**vars(self), "_given": dict(self._given)}

    def hyperparameters(self) -> dict[str, str]:
        """Return the assigned values that are not None as strings, in the order of assignment.

        Returns
        -------
        hyperparameters
            As SageMaker sends them to its container: ``{"epochs": "3", "eps": "1e-06"}``; true and false in lower
            case. Until `fit` has seen the data, ``feature_dim`` is only there when it was assigned.
        """
        return {name: _written(value) for name, value in self._given.items() if value is not None}

    if TYPE_CHECKING:  # the attributes are made below, where a type checker does not see them

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


for _row in HYPERPARAMETERS.values():
    setattr(HasHyperparameters, _row.name, HyperparameterAttribute(_row))
