"""What a look into data found: facts, problems and advice, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayfm.batch import HARMLESS, Problem

UNREADABLE, EMPTY_FILE, INDEX_BASE, NO_ROWS = "unreadable file", "empty file", "features counted from 1", "no rows"
"""Kinds of findings beside those of single records, which `Problem` has."""

KINDS = (NO_ROWS, UNREADABLE, EMPTY_FILE, INDEX_BASE, *(str(problem) for problem in Problem))
"""Every kind, in the order in which a report lists them."""

_HARMLESS_KINDS = frozenset({EMPTY_FILE, INDEX_BASE, *(str(problem) for problem in HARMLESS)})

LARGE_VALUE = 100.0
"""From here on |x| is worth a word: the score holds products of two values."""

_MAX_SHOWN = 10  # findings of one kind; only those about files can be more than one


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem: how often it occurs, and where first.

    Attributes
    ----------
    kind
        One of `KINDS`.
    count
        Records (files, for the kinds that are about files) that have it.
    file, record
        Where it occurs first in the order of the files; the record's number counts from 1 and is None when the
        file as a whole is meant.
    problem, remedy
        What is wrong there, and what to do about it.
    """

    kind: str
    count: int
    file: str
    record: int | None
    problem: str
    remedy: str

    @property
    def is_harmful(self) -> bool:
        """Whether training would stop at it."""
        return self.kind not in _HARMLESS_KINDS

    @property
    def place(self) -> str:
        """Where it occurs first, as error messages write it."""
        return self.file if self.record is None else f"{self.file}:{self.record}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `rayfm.training.doctor.check`.

    Attributes
    ----------
    findings
        One for each kind of problem with records, one for each file that something is wrong with; in the order of
        `KINDS`.
    facts
        What the readable records hold, ready for JSON: ``files``, ``formats``, ``size_bytes``, ``rows``,
        ``entries``, ``smallest_key``, ``largest_key``, ``largest_value`` (without its sign), ``labels``,
        ``feature_dim`` (as the files declare it), ``has_weights``, ``has_uids``, ``index_base``; None where there is
        nothing to say.
    suggestions
        Advice, a line each.
    """

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    suggestions: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether training would accept the data."""
        return not any(finding.is_harmful for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        findings = [{**asdict(finding), "harmful": finding.is_harmful} for finding in self.findings]
        return {"ok": self.ok, "facts": dict(self.facts), "findings": findings, "suggestions": list(self.suggestions)}

    def render(self) -> str:
        """Return plain text for a terminal."""
        sections = [_aligned(list(_fact_lines(self.facts)))]
        if self.findings:
            sections.append("\n".join(_finding_lines(self.findings)))
        sections.append("\n".join(f"Hint: {suggestion}" for suggestion in self.suggestions))
        harmful = len({finding.kind for finding in self.findings if finding.is_harmful})
        verdict = f"{harmful} kind{'s' if harmful > 1 else ''} of problem at which training would stop."
        sections.append(verdict if harmful else "Nothing at which training would stop.")
        return "\n\n".join(filter(None, sections))


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings by kind, and drop those that repeat what is wrong with a file as a whole."""
    told: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        told.setdefault((finding.kind, finding.file), finding)
    return tuple(sorted(told.values(), key=lambda finding: KINDS.index(finding.kind)))


def _aligned(pairs: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    formats = ", ".join(f"{count:,} {name}" for name, count in facts["formats"].items())
    yield "files", f"{facts['files']:,}" + (f" ({formats})" if formats else "")
    yield "size", _size(facts["size_bytes"])
    yield "rows", f"{facts['rows']:,}"
    per_row = f" ({facts['entries'] / facts['rows']:.1f} a row)" if facts["rows"] else ""
    yield "entries", f"{facts['entries']:,}{per_row}"
    if facts["largest_key"] is not None:
        yield "keys", f"{facts['smallest_key']} to {facts['largest_key']}"
        yield "largest |x|", f"{facts['largest_value']:g}"
    yield "width", "not declared" if facts["feature_dim"] is None else f"{facts['feature_dim']:,} as declared"
    yield "labels", _labels_text(facts["labels"])
    has = [name for name in ("weights", "uids") if facts[f"has_{name}"]]
    yield "also", " and ".join(has) or "no weights, no uids"
    if facts["index_base"] is not None:
        yield "index base", f"{facts['index_base']}"


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def _labels_text(labels: Mapping[str, Any] | None) -> str:
    if labels is None:
        return "none"
    if labels["counts"] is not None:
        return ", ".join(f"{label:g} ({count:,})" for label, count in labels["counts"])
    return f"{labels['min']:g} to {labels['max']:g}, mean {labels['mean']:g}"


def _finding_lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    kinds = max(len(finding.kind) for finding in findings)
    counts = max(len(f"{finding.count:,}") for finding in findings)
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] > _MAX_SHOWN:
            continue
        mark = "error" if finding.is_harmful else "note "
        where = "in" if finding.count == 1 else "first in"
        yield f"{mark}  {finding.kind:<{kinds}}  {finding.count:>{counts},}  {where} {finding.place}"
        yield f"       {finding.problem} {finding.remedy}".rstrip()
    for kind, number in shown.items():
        if number > _MAX_SHOWN:
            yield f"       and {number - _MAX_SHOWN:,} more: {kind}"


def suggestions(facts: Mapping[str, Any], feature_dim: int | None, predictor_type: str | None) -> Iterator[str]:
    """Yield advice that follows from the facts, for training with these hyperparameters (None: not chosen yet)."""
    needed = None if facts["largest_key"] is None else facts["largest_key"] + 1
    if needed is not None and feature_dim is not None and feature_dim < needed:
        yield f"keys run to {needed - 1}: feature_dim must be >= {needed}."
    if (facts["largest_value"] or 0.0) >= LARGE_VALUE:
        yield f"largest |x| = {facts['largest_value']:g}: scale the features, to about -1 to 1."
    if facts["labels"] is not None:
        yield from _label_suggestions(facts["labels"], predictor_type)


def _label_suggestions(labels: Mapping[str, Any], predictor_type: str | None) -> Iterator[str]:
    distinct = None if labels["counts"] is None else {label for label, _ in labels["counts"]}
    if labels["min"] == labels["max"]:
        yield f"labels are all equal ({labels['min']:g}): there is nothing to learn."
    elif distinct == {0.0, 1.0} and predictor_type != "binary_classifier":
        yield "labels are 0 and 1: predictor_type=binary_classifier predicts the probability of 1."
    elif distinct == {-1.0, 1.0} and predictor_type != "regressor":
        yield "labels are -1/+1: binary_classifier needs 0/1."
    elif predictor_type == "binary_classifier" and distinct != {0.0, 1.0}:
        yield "labels are not 0/1: binary_classifier needs 0/1; regressor takes any number."
