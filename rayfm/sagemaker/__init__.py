"""The API of SageMaker's Python SDK for factorization machines, on Ray.

A script for ``sagemaker.FactorizationMachines`` changes its import and keeps the rest::

    from rayfm.sagemaker import FactorizationMachines

Where the SDK's behaviour is a trap, the docstrings say what is done instead.
"""

from __future__ import annotations
