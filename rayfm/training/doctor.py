"""Look through data for everything that is wrong with it, in parallel where there is much, and stop at nothing.

Training stops at the first bad record; this reads on and counts them, so that they can be put right at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import ray

from rayfm.batch import EQUAL_WIDTHS, Chunk, Problem, RowRules
from rayfm.errors import DataError, StorageError
from rayfm.reading import Piece, ReadOptions, cut, detect_format, guess_index_base, read_piece, record_number
from rayfm.storage import InputFile, Uri, list_files
from rayfm.training import cluster
from rayfm.training.check_facts import Facts
from rayfm.training.check_report import (
    EMPTY_FILE,
    INDEX_BASE,
    NO_ROWS,
    UNREADABLE,
    CheckReport,
    Finding,
    in_order,
    suggestions,
)
from rayfm.training.sources import MAX_PIECE_BYTES, MIN_PIECE_BYTES

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

CallEach = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], list[Any]]
"""Calls a function with each of the arguments, and returns the results in their order."""


def check(
    uris: Uri | Sequence[Uri],
    *,
    options: ReadOptions | None = None,
    feature_dim: int | None = None,
    predictor_type: str | None = None,
    address: str | None = None,
) -> CheckReport:
    """Read files as training would and tell what is in them and what is wrong with them.

    Parameters
    ----------
    uris
        As training takes them.
    options
        How files are read; `needs_labels` tells whether a record without label is a problem.
    feature_dim, predictor_type
        The hyperparameters that the data must fit, as far as they are known.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out; none for a few MiB.

    Returns
    -------
    report
        Bad data is a finding, never an exception.

    Raises
    ------
    StorageError
        If there are no such files, or they cannot be listed.
    """
    try:
        files = list_files(uris)
    except DataError as error:  # a damaged manifest
        return CheckReport((_of_file(str(uris), error),), _described([], {}, Facts(), {}, None))
    options, findings = _settle_index_base(files, options or ReadOptions())
    is_here = cluster.connect_unless_few(sum(file.size_bytes for file in files), address)
    call_each, parts = (_one_by_one, 1.0) if is_here else (_in_parallel, max(1.0, 2 * cluster.cluster_cpus()))
    pieces, formats, file_findings = _cut_each(files, options, parts)
    rules = _Rules(feature_dim, predictor_type == "binary_classifier", options.needs_labels)
    examined = _examine_all(pieces, options, rules, call_each)
    widths = _merged(part.widths for part in examined)
    problems = _merged(part.problems for part in examined)
    if feature_dim is None:
        problems = _merged([problems, _width_conflict(widths)])
    findings += [*file_findings, *(error for part in examined for error in part.errors)]
    findings += _numbered(problems, pieces, call_each)
    facts = reduce(Facts.merge, (part.facts for part in examined), Facts())
    described = _described(files, formats, facts, widths, options.index_base)
    if feature_dim is None and widths and facts.largest_key is not None and facts.largest_key >= min(widths):
        problem = f"rows declare {min(widths)} features, but keys run to {facts.largest_key}."
        findings.append(Finding(Problem.WRONG_WIDTH, 1, files[0].uri, None, problem, EQUAL_WIDTHS))
    if not facts.rows:
        remedy = "Check the path and the export."
        findings.append(Finding(NO_ROWS, 1, files[0].uri, None, "there are no readable rows.", remedy))
    return CheckReport(in_order(findings), described, tuple(suggestions(described, feature_dim, predictor_type)))


def _settle_index_base(files: list[InputFile], options: ReadOptions) -> tuple[ReadOptions, list[Finding]]:
    """Guess from where text counts features, as training does."""
    if options.index_base is not None:
        return options, []
    for file in files:
        try:
            if not file.size_bytes or (options.format or detect_format(file.uri)) != "libsvm":
                continue
            guessed = guess_index_base([file])
        except (DataError, StorageError):
            continue  # found again, and reported, when the file is read
        if not guessed:
            return replace(options, index_base=0), []
        problem = "text has no feature 0, so features are taken to be counted from 1."
        finding = Finding(INDEX_BASE, 1, file.uri, None, problem, "Set index_base=0 if they count from 0.")
        return replace(options, index_base=1), [finding]
    return options, []


def _cut_each(
    files: list[InputFile], options: ReadOptions, parts: float
) -> tuple[list[Piece], dict[str, int], list[Finding]]:
    """Cut what can be cut, all into about so many; return the pieces, the files by format, and what is wrong."""
    share = sum(file.size_bytes for file in files) / parts
    target = int(min(max(share, MIN_PIECE_BYTES), MAX_PIECE_BYTES))
    pieces: list[Piece] = []
    formats: Counter[str] = Counter()
    findings: list[Finding] = []
    for file in files:
        if not file.size_bytes:
            findings.append(Finding(EMPTY_FILE, 1, file.uri, None, "the file is empty.", "It is skipped."))
            continue
        try:
            name = options.format or detect_format(file.uri)
            formats[name] += 1
            pieces += cut([file], replace(options, format=name), target)
        except (DataError, StorageError) as error:
            findings.append(_of_file(file.uri, error))
    return pieces, dict(formats), findings


def _of_file(uri: str, error: DataError | StorageError) -> Finding:
    if isinstance(error, DataError):
        return Finding(UNREADABLE, 1, error.path or uri, error.record, error.problem, error.remedy)
    return Finding(UNREADABLE, 1, uri, None, str(error), "")


def _described(
    files: list[InputFile],
    formats: dict[str, int],
    facts: Facts,
    widths: dict[int, _Occurrence],
    index_base: int | None,
) -> dict[str, Any]:
    """Return the facts of a report."""
    return {
        "files": len(files),
        "formats": formats,
        "size_bytes": sum(file.size_bytes for file in files),
        **facts.as_dict(),
        "feature_dim": min(widths, key=lambda width: widths[width].place, default=None),
        "index_base": index_base if "libsvm" in formats else None,
    }


@dataclass(frozen=True, slots=True)
class _Occurrence:
    """How often something occurs, and where first: (index of the piece, ordinal of the record in it)."""

    count: int
    place: tuple[int, int]
    problem: str = ""
    remedy: str = ""

    def merge(self, other: _Occurrence) -> _Occurrence:
        """Count both, keeping the first in the order of the files."""
        first = other if other.place < self.place else self
        return replace(first, count=self.count + other.count)


def _merged(parts: Iterable[dict[Key, _Occurrence]]) -> dict[Key, _Occurrence]:
    """Add up what several pieces hold."""
    merged: dict[Key, _Occurrence] = {}
    for part in parts:
        for key, occurrence in part.items():
            merged[key] = merged[key].merge(occurrence) if key in merged else occurrence
    return merged


@dataclass(frozen=True, slots=True)
class _Rules:
    """What rows must fulfil."""

    feature_dim: int | None
    binary_labels: bool
    needs_labels: bool

    def split(self) -> tuple[RowRules, RowRules]:
        """Return those of rows in themselves and that of the width, whose breach must not hide breaches of others."""
        return RowRules(None, self.binary_labels, self.needs_labels), RowRules(self.feature_dim, needs_labels=False)


@dataclass(slots=True)
class _Examination:
    """What one piece holds; `widths` by declared width."""

    index: int
    problems: dict[Problem, _Occurrence] = field(default_factory=dict)
    widths: dict[int, _Occurrence] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    errors: list[Finding] = field(default_factory=list)

    def note(self, kind: Problem, ordinal: int, problem: str, remedy: str, count: int = 1) -> None:
        """Count a problem; the `report` of readers."""
        occurrence = _Occurrence(count, (self.index, ordinal), problem, remedy)
        self.problems = _merged([self.problems, {kind: occurrence}])

    def add(self, chunk: Chunk, width_rule: RowRules) -> None:
        """Take in readable rows."""

        def note(kind: Problem, ordinal: int, problem: str, remedy: str) -> None:
            if kind is Problem.WRONG_WIDTH:  # which is said once for all the rows
                self.note(kind, ordinal, problem, remedy, chunk.batch.num_rows)
            elif kind is Problem.FEATURE_KEY:
                self.note(kind, ordinal, problem, remedy)

        width_rule.check(chunk, note)
        self.facts = self.facts.merge(Facts.of(chunk.batch))
        if chunk.batch.feature_dim is not None:
            rows = _Occurrence(chunk.batch.num_rows, (self.index, int(chunk.ordinals[0])))
            self.widths = _merged([self.widths, {chunk.batch.feature_dim: rows}])


def _examine(pieces: list[tuple[int, Piece]], options: ReadOptions, rules: _Rules) -> list[_Examination]:
    """Read pieces, given with their index among all: the body of a Ray task."""
    row_rules, width_rule = rules.split()
    examinations = []
    for index, piece in pieces:
        examination = _Examination(index)
        try:
            for chunk in read_piece(piece, options, row_rules, examination.note):
                examination.add(chunk, width_rule)
        except (DataError, StorageError) as error:
            examination.errors.append(_of_file(piece.uri, error))
        examinations.append(examination)
    return examinations


def _examine_all(pieces: list[Piece], options: ReadOptions, rules: _Rules, call_each: CallEach) -> list[_Examination]:
    """Read all pieces, small ones several at a time; the results are in their order."""
    groups: list[list[tuple[int, Piece]]] = []
    room = 0
    for index, piece in enumerate(pieces):
        if piece.size_bytes > room:
            groups.append([])
            room = MIN_PIECE_BYTES
        groups[-1].append((index, piece))
        room -= piece.size_bytes
    results = call_each(_examine, [(group, options, rules) for group in groups])
    return [examination for group in results for examination in group]


def _width_conflict(widths: dict[int, _Occurrence]) -> dict[Problem, _Occurrence]:
    """Find rows that declare another width than the first ones."""
    if len(widths) < 2:
        return {}
    (expected, _), *others = sorted(widths.items(), key=lambda item: item[1].place)
    width, first = others[0]
    problem = f"rows are {width} features wide, those before them {expected}."
    count = sum(occurrence.count for _, occurrence in others)
    return {Problem.WRONG_WIDTH: _Occurrence(count, first.place, problem, EQUAL_WIDTHS)}


def _numbered(problems: dict[Problem, _Occurrence], pieces: list[Piece], call_each: CallEach) -> list[Finding]:
    """Make findings of problems, looking up the numbers of the records in their files."""
    places = [(pieces[occurrence.place[0]], occurrence.place[1]) for occurrence in problems.values()]
    numbers = call_each(record_number, places)
    return [
        Finding(str(kind), found.count, piece.uri, number, found.problem, found.remedy)
        for (kind, found), (piece, _), number in zip(problems.items(), places, numbers, strict=True)
    ]


def _one_by_one(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> list[Result]:
    """Call a function in this process."""
    return [function(*arguments) for arguments in calls]


def _in_parallel(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> list[Result]:
    """Call a function in Ray tasks and return the results in the order of the calls."""
    task = ray.remote(function)
    references = [task.remote(*arguments) for arguments in calls]
    try:
        results: list[Result] = ray.get(references)
        return results
    except ray.exceptions.RayError as error:
        raise cluster.explain(error, "checking failed") from error
