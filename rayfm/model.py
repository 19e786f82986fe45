"""A factorization machine: its parameters, how they start, and what they predict.

    raw(x) = bias + Σ_i linear_i x_i + ½ Σ_f [(Σ_i factors_if x_i)² − Σ_i factors_if² x_i²]

A regressor answers raw(x); a binary classifier answers 1 / (1 + exp(−raw(x))).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayfm.batch import Chunk, RowRules, SparseBatch, raise_problem
from rayfm.errors import DataError, ModelFileError, StorageError
from rayfm.hyperparameters import GROUPS, Hyperparameters

if TYPE_CHECKING:
    from rayfm.formats.model_parts import ModelParts
    from rayfm.kernels.tables import Parameters

Float32Array = NDArray[np.float32]

MODEL_SUFFIX = ".safetensors"
MODEL_FILE = "model" + MODEL_SUFFIX
"""Name of the model file in the directory of a training job."""
_BUFFER_BYTES = 1 << 22
_ROWS_DRAWN = 1 << 16
"""At a time, so that drawing takes next to no memory of its own."""


@dataclass(frozen=True, eq=False)
class FactorizationMachine:
    """A trained model. The arrays may be read-only views of a memory-mapped file.

    Attributes
    ----------
    bias
        w₀.
    linear
        Shape (feature_dim,), float32.
    factors
        Shape (feature_dim, num_factors), float32, C order: a row is a feature.
    predictor_type
        ``regressor`` or ``binary_classifier``.
    hyperparameters
        What it was trained with, names as in `Hyperparameters`.
    metrics
        What was measured at the end of training, such as ``{"validation:rmse": 0.91}``.
    facts
        Whatever else a reader of the model may need to know: library versions, seed, ``index_base`` of text
        input.
    """

    bias: float
    linear: Float32Array
    factors: Float32Array
    predictor_type: str = "regressor"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shape = f"feature_dim={self.feature_dim}, num_factors={self.num_factors}"
        return f"FactorizationMachine({self.predictor_type}, {shape})"

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return len(self.factors)

    @property
    def num_factors(self) -> int:
        """Length of a feature's factor vector."""
        return int(self.factors.shape[1])

    @property
    def is_classifier(self) -> bool:
        """Whether scores are probabilities."""
        return self.predictor_type == "binary_classifier"

    @classmethod
    def initialised(cls, hyperparameters: Hyperparameters, feature_dim: int, seed: int) -> Self:
        """Draw the parameters a training run starts from: the same seed gives the same parameters."""
        arrays = (
            np.empty(1, "f4"),
            np.empty(feature_dim, "f4"),
            np.empty((feature_dim, hyperparameters.num_factors), "f4"),
        )
        draw_parameters(arrays, hyperparameters, seed)
        bias, linear, factors = arrays
        return cls(float(bias[0]), linear, factors, hyperparameters.predictor_type, hyperparameters.as_dict())

    def raw_scores(self, batch: SparseBatch) -> Float32Array:
        """Score every row of `batch` before the link function.

        Parameters
        ----------
        batch
            Rows to score; labels are not looked at.

        Returns
        -------
        raw
            Shape (num_rows,), float32.

        Raises
        ------
        DataError
            If a key is outside the model, a value is not finite, or the rows declare another width.

        References
        ----------
        Rendle, "Factorization Machines", ICDM 2010, eq. 1 and lemma 3.1.

        Examples
        --------
        >>> model = FactorizationMachine(0.5, np.ones(2, np.float32), np.zeros((2, 1), np.float32))
        >>> model.raw_scores(SparseBatch.from_dense([[1.0, 2.0]])).tolist()
        [3.5]
        """
        chunk = Chunk(batch, np.arange(batch.num_rows, dtype=np.int64))
        RowRules(self.feature_dim, needs_labels=False).check(chunk, raise_problem)
        return self.raw_scores_unchecked(batch)

    def raw_scores_unchecked(self, batch: SparseBatch) -> Float32Array:
        """Score rows that are known to fulfil `RowRules`; a key outside the model would read foreign memory."""
        from rayfm.kernels.scoring import score

        return score(batch, np.array([self.bias], np.float32), self.linear, self.factors)

    def predict(self, features: SparseBatch | ArrayLike | Any) -> Float32Array:
        """Return the score of each row: the number itself, or the probability of label 1.

        Parameters
        ----------
        features
            A `SparseBatch`, a SciPy sparse matrix, a pandas DataFrame or anything NumPy makes a matrix of, shape
            (num_rows, feature_dim).

        Returns
        -------
        score
            Shape (num_rows,), float32.

        Raises
        ------
        DataError
            As in `raw_scores`, or if something is no real number.
        """
        return self.link(self.raw_scores(as_batch(features)))

    def link(self, raw: Float32Array) -> Float32Array:
        """Turn raw scores into scores: the identity, or 1 / (1 + exp(−raw))."""
        if not self.is_classifier:
            return raw
        from rayfm.kernels.jit import read_only
        from rayfm.kernels.scoring import probabilities

        scores = np.empty(raw.shape, np.float32)
        probabilities(read_only(raw), scores)
        return scores

    def labels_of(self, scores: Float32Array) -> Float32Array:
        """Return the label that each score of a classifier stands for: 1.0 where it is >= 0.5, else 0.0.

        It is told from the score as it is answered, in 32 bits, so that no answer contradicts itself.

        >>> model = FactorizationMachine(0.0, np.ones(1, np.float32), np.zeros((1, 1), np.float32), "binary_classifier")
        >>> model.labels_of(np.array([0.25, 0.5], np.float32)).tolist()
        [0.0, 1.0]
        """
        return (np.asarray(scores, np.float32) >= 0.5).astype(np.float32)

    def check_finite(self) -> None:
        """Check that every parameter is a finite number; reads all of them once.

        Raises
        ------
        ModelFileError
            If one is not; names the first feature.
        """
        self._parts({}, {}, {}).check_finite()

    def _parts(self, *known: dict[str, Any]) -> ModelParts:
        from rayfm.formats.model_parts import ModelParts

        return ModelParts(self.bias, self.linear, self.factors, self.predictor_type, *known)

    def save(self, uri: str | Path) -> None:
        """Write the model to a file, whole or not at all.

        Parameters
        ----------
        uri
            The end of the name tells the kind of file: ``.safetensors`` (rayfm's own), ``.tar.gz`` or ``.tgz``
            (SageMaker's ``model.tar.gz``), ``.parquet`` (a table of the features) or ``.libfm`` (libFM's text).
            `load` reads the first two kinds.

        Raises
        ------
        ModelFileError
            If the name ends otherwise, or the model is none: shapes or types do not fit, or what is known of it is no
            plain data.
        StorageError
            If the place cannot be written.
        """
        from rayfm.formats import model_files
        from rayfm.storage import atomic_writer, jsonable

        write = model_files.writer(str(uri))
        try:
            known = (jsonable(self.hyperparameters), jsonable(self.metrics), jsonable(self.facts))
        except RecursionError:
            raise ModelFileError("what is known of the model must be plain data, got values nested too deep.") from None
        parts = self._parts(*known)
        parts.check()
        with atomic_writer(str(uri)) as file:
            write(file, parts)

    @classmethod
    def load(cls, uri: str | Path) -> FactorizationMachine:
        """Read a model file; a local ``.safetensors`` is mapped, not read. Nothing is ever unpickled.

        Parameters
        ----------
        uri
            A ``.safetensors`` file, a ``model.tar.gz`` of SageMaker's or rayfm's (by its name, or by its content when
            the name says nothing), or the directory of a training job that holds ``model.safetensors``.

        Raises
        ------
        StorageError
            If there is no such file.
        ModelFileError
            If it is damaged or not a model.
        """
        from rayfm.formats import model_files, sagemaker_archive
        from rayfm.storage import local_path, open_input, read_bytes
        from rayfm.storage.uris import storage_errors

        name, kind = _model_file(str(uri))
        try:
            if kind in model_files.ARCHIVES:
                with storage_errors(name, "read"), open_input(name, compressed=False) as file:
                    # gzip asks for a few KiB at a time, each of which would be a request to a bucket
                    buffered = io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
                    parts = sagemaker_archive.read(cast(BinaryIO, buffered), name)
            elif kind in (None, model_files.SAFETENSORS):
                parts = model_files.read_safetensors(local_path(name) or read_bytes(name), name)
            else:
                raise ModelFileError(f"a model can be written to {kind} but not read from it, got {uri}.")
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"there is no model at {uri}. Name a model file or the directory of a job.") from error
        return cls(*parts)

    @classmethod
    def from_parameters(
        cls, parameters: Parameters, hyperparameters: Hyperparameters, metrics: dict[str, float], facts: dict[str, Any]
    ) -> FactorizationMachine:
        """Wrap the arrays of a training run."""
        return cls(
            float(parameters.bias[0]),
            parameters.linear,
            parameters.factors,
            hyperparameters.predictor_type,
            hyperparameters.as_dict(),
            metrics,
            facts,
        )


def largest(sizes: NDArray[Any], top: int) -> NDArray[np.int64]:
    """Return where the `top` greatest sizes are, the greatest first, the lower number first among equals.

    >>> largest(np.array([1.0, 3.0, 2.0, 3.0]), 3).tolist()
    [1, 3, 2]
    """
    if top < len(sizes):
        candidates = np.flatnonzero(sizes >= np.partition(sizes, -top)[-top]) if top else np.array([], int)
    else:
        candidates = np.arange(len(sizes))
    return candidates[np.argsort(-sizes[candidates], kind="stable")][:top]


def draw_parameters(arrays: Sequence[Float32Array], hyperparameters: Hyperparameters, seed: int) -> None:
    """Draw what a training run starts from into (bias, linear, factors), which need not be contiguous."""
    for index, (group, array) in enumerate(zip(GROUPS, arrays, strict=True)):
        rng = np.random.default_rng((seed, index))
        for start in range(0, len(array), _ROWS_DRAWN):
            part = array[start : start + _ROWS_DRAWN]
            part[...] = _initial(hyperparameters, group, part.shape, rng)


def as_batch(features: Any, labels: ArrayLike | None = None, weights: ArrayLike | None = None) -> SparseBatch:
    """Make a `SparseBatch` of a SparseBatch, a SciPy sparse matrix, a pandas DataFrame or a dense matrix.

    Raises
    ------
    DataError
        If `features` is no matrix, or anything is no real number.
    """
    from rayfm.formats.matrices import as_column, as_matrix, is_sparse

    given = {"labels": labels, "weights": weights}
    with np.errstate(over="ignore"):  # what becomes infinite is for the row checks to report
        columns: dict[str, Any] = {
            name: as_column(value, name).astype(np.float32) for name, value in given.items() if value is not None
        }
    if isinstance(features, SparseBatch):
        return replace(features, **columns)
    matrix = as_matrix(features)
    if len(matrix.shape) != 2:
        raise DataError(f"features must have 2 dimensions (rows, feature_dim), got {len(matrix.shape)}.")
    return (SparseBatch.from_scipy if is_sparse(matrix) else SparseBatch.from_dense)(matrix, **columns)


def _model_file(uri: str) -> tuple[str, str | None]:
    """Return the URI of the model file that is meant, and its kind: the end of a name of that kind."""
    from rayfm.formats import model_files
    from rayfm.storage import join, open_input

    kind = model_files.kind(uri)
    if kind is not None:
        return uri, kind
    if not _is_file(uri):
        return join(uri, MODEL_FILE), MODEL_SUFFIX
    with open_input(uri, compressed=False) as file:
        is_gzip = file.read(2) == model_files.GZIP_MAGIC
    return uri, model_files.ARCHIVES[0] if is_gzip else MODEL_SUFFIX


def _is_file(uri: str) -> bool:
    from pyarrow.fs import FileType

    from rayfm.storage import resolve
    from rayfm.storage.uris import storage_errors

    filesystem, path = resolve(uri)
    with storage_errors(uri, "read"):
        return bool(filesystem.get_file_info(path).type == FileType.File)


def _initial(values: Hyperparameters, group: str, shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    method = getattr(values, f"{group}_init_method")
    if method == "normal":
        drawn = rng.standard_normal(shape, dtype=np.float32)
        drawn *= np.float32(getattr(values, f"{group}_init_sigma"))
        return drawn
    if method == "uniform":
        scale = np.float32(getattr(values, f"{group}_init_scale"))
        drawn = rng.random(shape, dtype=np.float32)
        drawn *= 2 * scale
        drawn -= scale
        return drawn
    return np.full(shape, getattr(values, f"{group}_init_value"), dtype=np.float32)
