"""The table of hyperparameters against what the real SageMaker SDK accepts, stores and says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rayfm.errors import HyperparameterError
from rayfm.hyperparameters import HYPERPARAMETERS, Hyperparameters

GOLDEN = json.loads((Path(__file__).parent / "golden" / "hyperparameter_validation_v1.json").read_text())["hp"]
NAMES = {"nan": math.nan, "inf": math.inf}


def outcome(name: str, written: str) -> str:
    """What rayfm does with a value, in the words of the golden file."""
    value = np.float32(0.1) if written == "0.1" else eval(written, {"__builtins__": {}}, NAMES)  # made with a float32
    try:
        coerced = HYPERPARAMETERS[name].coerce(value)
    except HyperparameterError as error:
        return f"ValueError: {error}"
    except (ValueError, TypeError, OverflowError) as error:
        assert name in error.__notes__[0]
        return f"{type(error).__name__}: {error}"
    return "<absent>" if coerced is None else str(coerced)


@pytest.mark.parametrize("name", GOLDEN)
def test_coerce__does_what_the_real_sdk_does(name):
    assert {written: outcome(name, written) for written in GOLDEN[name]} == GOLDEN[name]


def test_of__fills_in_sagemakers_defaults():
    values = Hyperparameters.of(num_factors=4, predictor_type="regressor", mini_batch_size=200)
    assert values.group("lr") == (0.1, 0.001, 0.0001)
    assert values.group("wd") == (0.01, 0.001, 0.00001)
    assert values.group("init_sigma") == (0.01, 0.01, 0.001)
    assert (values.rescale_grad, values.eps, values.clip_gradient, values.epochs) == (1 / 200, 1e-8, None, 1)
    assert (values.optimizer, values.shuffle, values.seed) == ("adam", False, None)


def test_of__takes_strings_as_a_hyperparameter_file_has_them():
    values = Hyperparameters.of({"num_factors": "64", "predictor_type": "regressor", "eps": "1e-06", "shuffle": "true"})
    assert (values.num_factors, values.eps, values.shuffle) == (64, 1e-6, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_factor": 3}, r"'num_factor' was unexpected\). Did you mean num_factors\?"),
        ({"predictor_type": "regressor"}, "num_factors must be given"),
        ({"num_factors": 1, "predictor_type": "ranker"}, 'Expecting: Value "binary_classifier" or "regressor"'),
        ({"num_factors": 1, "predictor_type": "regressor", "bias_init_method": "uniform"}, "bias_init_scale must"),
        ({"num_factors": 1, "predictor_type": "regressor", "linear_l1": 1}, "unless optimizer is ftrl"),
        ({"num_factors": 1, "predictor_type": "regressor", "eps": math.nan}, "eps must be finite"),
        ({"num_factors": 1, "predictor_type": "regressor", "seed": -1}, "from 0 to"),
    ],
)
def test_of__refuses(given, message):
    with pytest.raises(HyperparameterError, match=message):
        Hyperparameters.of(given)


def test_as_dict__leaves_out_what_is_not_set():
    values = Hyperparameters.of(num_factors=4, predictor_type="regressor").as_dict()
    assert "clip_gradient" not in values
    assert Hyperparameters.of(values).as_dict() == values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": 0}, "eps must be >= 1.18e-38"),
        ({"eps": 1e-50}, "eps must be >= 1.18e-38"),
        ({"linear_wd": 1e39}, "linear_wd must be finite in 32 bits"),
        ({"optimizer": "ftrl", "ftrl_beta": 0}, "ftrl_beta must be >="),
        ({"mini_batch_size": 2**63}, "Invalid hyperparameter value 9223372036854775808 for mini_batch_size"),
    ],
)
def test_of__refuses_what_the_kernels_cannot_compute_with(given, message):
    with pytest.raises(HyperparameterError, match=message):
        Hyperparameters.of({"num_factors": 1, "predictor_type": "regressor"}, **given)
