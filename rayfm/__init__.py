"""rayfm: factorization machines on Ray, compatible with Amazon SageMaker's."""

__version__ = "0.1.0"
