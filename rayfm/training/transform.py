"""Batch transform: a file of scores for every file of a data set, as SageMaker's batch transform makes them.

All files are scored in one go (pool.py): small ones share the calls of an actor, large ones are cut into pieces that
several actors work on. The process that asked for it strings together what comes back, in the order of the files, and
writes one after the other.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rayfm.errors import DataError
from rayfm.formats.scores import encoding_of
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.storage import InputFile, absolute, atomic_writer, check_writable, join, list_files, read_bytes
from rayfm.storage.uris import OPTIONS, SCHEME
from rayfm.training.scoring import ScoredPart, ScoringPlan, loaded
from rayfm.training.sources import FilesSource

OUTPUT_SUFFIX = ".out"
DEFAULT_ACCEPT = "application/jsonlines"

Progress = Callable[[int, int], None]
"""Called with the number of rows and of files that are done; what it raises ends the work."""


def unwatched(num_rows: int, num_files: int) -> None:
    """Go on without a word."""


@dataclass(frozen=True, slots=True)
class TransformSummary:
    """What `transform` did.

    Attributes
    ----------
    num_rows
        Rows that were scored.
    num_files
        Files that were read and written.
    seconds
        Time from the call to the last finished file.
    outputs
        The files of scores, in the order of the input.
    """

    num_rows: int
    num_files: int
    seconds: float
    outputs: tuple[str, ...]


def transform(
    model: FactorizationMachine | str | Path,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    output_path: str,
    accept: str = DEFAULT_ACCEPT,
    options: ReadOptions | None = None,
    keep_columns: Sequence[str] = (),
    address: str | None = None,
    watcher: Progress = unwatched,
) -> TransformSummary:
    """Score every row of every file into a file of its own, in the order of the rows.

    The scores of ``a/b.pbr`` below a given folder or beginning of names, or in a manifest, are in
    ``<output_path>/a/b.pbr.out``; those of a file that is given itself in ``<output_path>/b.pbr.out``. Each output
    appears when it is complete, and takes the place of one that is there; a file without rows has an output without
    rows.

    Parameters
    ----------
    model
        A model, or the URI of one.
    data
        URIs of files, folders, beginnings of names, patterns or manifests, as for training. Labels are not looked
        at. Text is read with the index base that the model was trained with, unless `options` says another.
    output_path
        URI of the folder for the outputs.
    accept
        Content type of the outputs; see `rayfm.formats.scores`.
    options
        How files are read.
    keep_columns
        Columns of Parquet files to write beside the scores; ``label``, the label, can be kept of files of any format.
        A row's uid is written in any case.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out; none for few rows (pool.py).
    watcher
        Called as rows and files are done.

    Raises
    ------
    DataError
        For the first bad record. Outputs of files before it may be complete and then stay, which a note on the error
        says; that of its own file does not appear, nor do those of later ones.
    DataError
        If two outputs would have the same name, or columns cannot be kept.
    StorageError
        If there is no input, or the output cannot be written.
    """
    started = time.perf_counter()
    plan = ScoringPlan.of(encoding_of(accept), options, keep_columns)
    machine = loaded(model)
    files, outputs = _inputs_and_outputs(data, output_path)
    check_writable(output_path)
    source = FilesSource(tuple(outputs), plan.options, tuple(files))
    writer = _Writer(plan, machine, outputs, watcher)
    with closing(plan.scored(machine, source, writer.report, address)) as parts:
        writer.write(parts)
    return TransformSummary(writer.num_rows, len(outputs), time.perf_counter() - started, tuple(outputs.values()))


class _Writer:
    """Writes the outputs one after the other."""

    def __init__(
        self, plan: ScoringPlan, machine: FactorizationMachine, outputs: Mapping[str, str], watcher: Progress
    ) -> None:
        self._plan, self._outputs, self._watcher = plan, outputs, watcher
        self._nothing = plan.nothing(machine)
        self._done: list[str] = []
        self.num_rows = 0

    def report(self) -> None:
        """Tell the watcher how far the work is."""
        self._watcher(self.num_rows, len(self._done))

    def write(self, parts: Iterator[ScoredPart]) -> None:
        """Write all outputs; an error gets a note of those that are there."""
        try:
            self._write_each(groupby(parts, lambda part: part.uri))
        except BaseException as error:
            if self._done:
                few = len(self._done) <= 3
                which = ", ".join(self._done) if few else f"{self._done[0]} to {self._done[-1]}"
                error.add_note(f"Complete are {len(self._done)} of {len(self._outputs)} outputs: {which}.")
            raise

    def _write_each(self, groups: Iterator[tuple[str, Iterator[ScoredPart]]]) -> None:
        group = next(groups, None)
        for uri, output in self._outputs.items():
            has_rows = group is not None and group[0] == uri
            with atomic_writer(output) as file:
                contents = self._contents(group[1]) if group is not None and has_rows else [self._nothing]
                self._plan.encoding.join(file, contents)
            self._done.append(output)
            self.report()
            if has_rows:
                group = next(groups, None)

    def _contents(self, parts: Iterator[ScoredPart]) -> Iterator[bytes]:
        for part in parts:
            self.num_rows += part.num_rows
            self.report()
            yield part.content


def _inputs_and_outputs(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], output_path: str
) -> tuple[list[InputFile], dict[str, str]]:
    """Return the files that the URIs mean, and of each the URI of its output."""
    uris = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(uris, Sequence) or not all(isinstance(uri, str | os.PathLike) for uri in uris):
        raise DataError(f"batch transform reads files, got a {type(data).__name__}.", "Pass URIs, or use predict.")
    files: list[InputFile] = []
    outputs: dict[str, str] = {}
    folder = absolute(output_path)
    origins: dict[str, str] = {}
    for uri in map(absolute, uris):
        found = list_files(uri)
        for file, name in zip(found, _names(found, uri), strict=True):
            output = join(folder, _checked(name, file.uri) + OUTPUT_SUFFIX)
            if output in origins:
                both = file.uri if origins[output] == file.uri else f"{origins[output]} and {file.uri}"
                raise DataError(
                    f"the scores of {both} would be written twice to {output}.",
                    "Pass a folder that holds both, or transform them one by one.",
                )
            origins[output] = file.uri
            outputs[file.uri] = output
        files += found
    if overwritten := sorted(origins.keys() & outputs.keys()):
        raise DataError("the file would be replaced by scores.", "Choose another output path.", overwritten[0])
    return files, outputs


def _names(files: Sequence[InputFile], uri: str) -> list[str]:
    """Name the files that a URI means, as seen from it."""
    given = _without_options(uri).rstrip("/")
    paths = [_without_options(file.uri) for file in files]
    if paths == [given]:
        return [given.rpartition("/")[2]]
    if all(path.startswith(f"{given}/") for path in paths):
        return [path[len(given) + 1 :] for path in paths]
    if given.endswith(".manifest"):
        return [name.lstrip("/") for name in json.loads(read_bytes(uri))[1:]]
    folder = re.split(r"[*?]", given, maxsplit=1)[0].rpartition("/")[0]
    return [path[len(folder) + 1 :] for path in paths]


def _without_options(uri: str) -> str:
    return OPTIONS.sub("", uri) if SCHEME.fullmatch(uri) else uri


def _checked(name: str, uri: str) -> str:
    """See that a name does not lead out of the folder in which its file is to lie."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise DataError(f"the name of a file must have no empty part, . or .., got {name!r}.", "Rename it.", uri)
    return name
