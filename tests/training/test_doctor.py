"""The data doctor, on real files that are ill in known ways."""

import gzip
import io
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfm.batch import Problem, SparseBatch
from rayfm.errors import StorageError
from rayfm.formats import libsvm, parquet, recordio
from rayfm.formats.recordio_frames import write_frame
from rayfm.reading import ReadOptions
from rayfm.training.check_report import EMPTY_FILE, INDEX_BASE, NO_ROWS, UNREADABLE, CheckReport, Finding
from rayfm.training.doctor import check

pytestmark = pytest.mark.usefixtures("ray_cluster")


def sound_batch(num_rows=20, feature_dim=6, **columns):
    rng = np.random.default_rng(num_rows)
    return SparseBatch.from_dense(rng.uniform(0.1, 1, (num_rows, feature_dim)), np.arange(num_rows) % 2, **columns)


def recordio_bytes(batch, **options):
    file = io.BytesIO()
    recordio.write(file, batch, **options)
    return file.getvalue()


def kinds(report):
    return {finding.kind: finding for finding in report.findings}


def only(report, kind):
    """Return the one finding that is not harmless, which must be of this kind."""
    [finding] = [finding for finding in report.findings if finding.is_harmful]
    assert finding.kind == kind
    assert not report.ok
    return finding


@pytest.fixture
def text(tmp_path):
    """Write a libsvm file and return its path."""

    def write(content, name="a.libsvm"):
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


def test_check__finds_nothing_in_sound_files_and_tells_what_they_hold(tmp_path):
    batch = sound_batch(weights=np.ones(20), uids=np.array([str(row) for row in range(20)], object))
    with open(tmp_path / "a.parquet", "wb") as file:
        parquet.write(file, batch)
    plain = SparseBatch(batch.indptr, batch.keys, batch.values, batch.labels, feature_dim=6)
    (tmp_path / "b.pbr").write_bytes(recordio_bytes(plain))
    report = check(str(tmp_path), predictor_type="binary_classifier", feature_dim=6)
    assert report.findings == ()
    assert report.ok
    assert report.facts == {
        "files": 2,
        "formats": {"parquet": 1, "recordio": 1},
        "size_bytes": sum(path.stat().st_size for path in tmp_path.iterdir()),
        "rows": 40,
        "entries": 240,
        "smallest_key": 0,
        "largest_key": 5,
        "largest_value": float(batch.values.max()),
        "has_weights": True,
        "has_uids": True,
        "labels": {"counts": [[0.0, 20], [1.0, 20]], "number": 40, "min": 0.0, "max": 1.0, "mean": 0.5},
        "feature_dim": 6,
        "index_base": None,
    }
    assert report.suggestions == ()


def test_check__finds_a_bad_frame_and_reads_on(tmp_path):
    content = bytearray(recordio_bytes(sound_batch()))
    size = len(content) // 20
    content[5 * size : 5 * size + 4] = b"spam"
    (tmp_path / "a.pbr").write_bytes(content)
    finding = only(check(tmp_path / "a.pbr"), Problem.BAD_FRAME)
    assert (finding.count, finding.file, finding.record) == (1, str(tmp_path / "a.pbr"), 6)
    assert "magic" in finding.problem
    assert check(tmp_path / "a.pbr").facts["rows"] == 19


def test_check__finds_records_that_are_no_protobuf(tmp_path):
    with open(tmp_path / "a.pbr", "wb") as file:
        recordio.write(file, sound_batch(3))
        write_frame(file, b"\xff\xff\xff")
        recordio.write(file, sound_batch(2))
        write_frame(file, b"\xff\xff\xff")
    finding = only(check(tmp_path / "a.pbr"), Problem.BAD_RECORD)
    assert (finding.count, finding.record) == (2, 4)
    assert "not a protobuf Record" in finding.problem


def test_check__finds_keys_outside_feature_dim_and_says_what_it_must_be(text):
    path = text("1 0:1\n0 123:1\n1 2:1\n0 50:1\n")
    report = check(path, feature_dim=50)
    finding = only(report, Problem.FEATURE_KEY)
    assert (finding.count, finding.record) == (2, 2)
    assert finding.problem == "feature key 123 is outside feature_dim=50."
    assert report.suggestions[0] == "keys run to 123: feature_dim must be >= 124."
    assert check(path, feature_dim=124).ok
    assert check(path).ok


def test_check__finds_what_is_not_finite(text):
    report = check(text("1 0:1\n0 1:nan\n1 2:inf 3:nan\n0 0:1e39\n"))
    finding = only(report, Problem.NOT_FINITE)
    assert (finding.count, finding.record) == (3, 2)
    assert report.facts["largest_value"] == 1.0


def test_check__notes_empty_rows_and_duplicate_keys_as_harmless(text):
    report = check(text("1 0:1\n0\n1 2:1 2:2\n0\n"))
    assert report.ok
    assert {kind: (finding.count, finding.record) for kind, finding in kinds(report).items()} == {
        Problem.EMPTY_ROW: (2, 2),
        Problem.DUPLICATE_KEYS: (1, 3),
    }


def test_check__finds_labels_of_another_task(text):
    path = text("1 0:1\n-1 0:2\n-1 0:3\n")
    report = check(path, predictor_type="binary_classifier")
    finding = only(report, Problem.WRONG_LABEL)
    assert (finding.count, finding.record) == (2, 2)
    assert report.suggestions == ("labels are -1/+1: binary_classifier needs 0/1.",)
    assert check(path, predictor_type="regressor").ok


def test_check__finds_missing_labels_unless_they_are_not_needed(text, tmp_path):
    path = text("1 0:1\n0:2\n")
    finding = only(check(path), Problem.NO_LABEL)
    assert (finding.count, finding.record) == (1, 2)
    assert check(path, options=ReadOptions(needs_labels=False)).ok
    with open(tmp_path / "b.parquet", "wb") as file:
        pq.write_table(pa.table({"features": [[1.0], [2.0], [3.0]], "label": [1.0, None, None]}), file)
    finding = only(check(tmp_path / "b.parquet"), Problem.NO_LABEL)
    assert (finding.count, finding.record) == (2, 2)


def test_check__finds_rows_of_another_width_than_asked_for_without_hiding_other_problems(tmp_path):
    batch = sound_batch(7)
    batch.values[8] = np.nan
    (tmp_path / "a.pbr").write_bytes(recordio_bytes(batch))
    report = check(tmp_path / "a.pbr", feature_dim=9)
    assert (kinds(report)[Problem.WRONG_WIDTH].count, kinds(report)[Problem.WRONG_WIDTH].record) == (7, 1)
    assert kinds(report)[Problem.NOT_FINITE].record == 2
    assert report.facts["feature_dim"] == 6


def test_check__finds_files_of_different_widths(tmp_path):
    (tmp_path / "a.pbr").write_bytes(recordio_bytes(sound_batch(3)))
    (tmp_path / "b.pbr").write_bytes(recordio_bytes(sound_batch(4), feature_dim=8))
    (tmp_path / "c.pbr").write_bytes(recordio_bytes(sound_batch(5)))
    finding = only(check(tmp_path), Problem.WRONG_WIDTH)
    assert (finding.count, finding.place) == (4, f"{tmp_path}/b.pbr:1")
    assert "8 features wide, those before them 6" in finding.problem


def test_check__notes_that_text_counts_from_one(text):
    path = text("1 1:1 3:1\n0 2:1\n")
    report = check(path)
    assert report.ok
    [finding] = report.findings
    assert (finding.kind, finding.file) == (INDEX_BASE, path)
    assert "no feature 0" in finding.problem
    assert (report.facts["index_base"], report.facts["smallest_key"], report.facts["largest_key"]) == (1, 0, 2)
    told = check(path, options=ReadOptions(index_base=0))
    assert told.findings == ()
    assert (told.facts["index_base"], told.facts["largest_key"]) == (0, 3)


def test_check__finds_text_that_counts_from_another_number_than_the_first_file(text, tmp_path):
    text("1 1:1\n", "a.libsvm")
    text("1 3:1\n0 0:1\n", "b.libsvm")
    finding = only(check(tmp_path), Problem.FEATURE_KEY)
    assert finding.place == f"{tmp_path}/b.libsvm:2"
    assert "Set index_base=0" in finding.remedy


def test_check__tells_which_files_cannot_be_read_and_reads_the_others(tmp_path, text):
    whole = gzip.compress("".join(f"1 0:1 {row}:0.5\n" for row in range(1, 20_000)).encode())
    (tmp_path / "a.libsvm.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet at all")
    (tmp_path / "c.bin").write_bytes(bytes(64))
    (tmp_path / "d.libsvm").write_bytes(b"")
    text("1 0:1\n0 1:1\n", "e.libsvm")
    report = check(tmp_path)
    problems = {finding.file.removeprefix(f"{tmp_path}/"): finding for finding in report.findings}
    assert {name: finding.kind for name, finding in problems.items()} == {
        "a.libsvm.gz": UNREADABLE,
        "b.parquet": UNREADABLE,
        "c.bin": UNREADABLE,
        "d.libsvm": EMPTY_FILE,
    }
    assert "ends too early" in problems["a.libsvm.gz"].problem
    assert "cannot be decoded" in problems["b.parquet"].problem
    assert "format is none of" in problems["c.bin"].problem
    assert not report.ok
    assert report.facts["files"] == 5
    assert report.facts["rows"] >= 2


def test_check__says_when_there_are_no_rows_at_all(tmp_path, text):
    text("", "a.libsvm")
    text("# a comment\n\n", "b.libsvm")
    report = check(tmp_path)
    assert only(report, NO_ROWS).file == f"{tmp_path}/a.libsvm"
    assert report.facts["rows"] == 0
    assert ["rows", "0"] in [line.split() for line in report.render().splitlines()]


def test_check__reports_a_damaged_manifest_and_raises_for_files_that_do_not_exist(tmp_path):
    (tmp_path / "train.manifest").write_text("{}")
    finding = only(check(tmp_path / "train.manifest"), UNREADABLE)
    assert "manifest must be" in finding.problem
    assert check(tmp_path / "train.manifest").render()
    with pytest.raises(StorageError, match=r"nowhere\.libsvm"):
        check(tmp_path / "nowhere.libsvm")


def test_check__finds_the_first_in_the_order_of_the_files_however_they_are_cut(tmp_path, monkeypatch, in_a_pool):
    batch = sound_batch(4000)
    clean = SparseBatch(batch.indptr, batch.keys, batch.values.copy(), batch.labels)
    ill = SparseBatch(batch.indptr, batch.keys, batch.values.copy(), batch.labels)
    for row in (2500, 3000, 3999):
        ill.values[6 * row] = np.inf
    for name, part in (("a", clean), ("b", ill), ("c", ill)):
        with open(tmp_path / f"{name}.libsvm", "wb") as file:
            libsvm.write(file, part)
        (tmp_path / f"{name}.pbr").write_bytes(recordio_bytes(part, feature_dim=6))
    for piece_bytes in (10_000, 2**20):
        monkeypatch.setattr("rayfm.training.doctor.MIN_PIECE_BYTES", piece_bytes)
        monkeypatch.setattr("rayfm.training.doctor.MAX_PIECE_BYTES", piece_bytes)
        for suffix in ("libsvm", "pbr"):
            report = check(f"{tmp_path}/*.{suffix}")
            finding = only(report, Problem.NOT_FINITE)
            assert (finding.count, finding.place) == (6, f"{tmp_path}/b.{suffix}:2501")
            assert report.facts["rows"] == 12_000


def test_check__summarises_labels_that_are_many(text):
    path = text("".join(f"{label} 0:1\n" for label in range(11)))
    report = check(path)
    assert report.facts["labels"] == {"counts": None, "number": 11, "min": 0.0, "max": 10.0, "mean": 5.0}
    assert re.search("^labels +0 to 10, mean 5$", report.render(), re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "predictor_type", "expected"),
    [
        ("3 0:1\n3 1:1\n", None, "labels are all equal (3): there is nothing to learn."),
        ("1 0:8e4\n0 1:1\n", "binary_classifier", "largest |x| = 80000: scale the features, to about -1 to 1."),
        ("1 0:1\n0 1:1\n", "regressor", "labels are 0 and 1: predictor_type=binary_classifier predicts"),
        ("1 0:1\n5 1:1\n", "binary_classifier", "labels are not 0/1: binary_classifier needs 0/1"),
    ],
)
def test_check__gives_advice(text, content, predictor_type, expected):
    [suggestion] = check(text(content), predictor_type=predictor_type).suggestions
    assert suggestion.startswith(expected)


def test_check__reads_from_s3(bucket, in_a_pool):
    bucket.put_object(Key="in/a.libsvm", Body=b"1 0:1\n0 1:nan\n")
    finding = only(check(f"s3://{bucket.name}/in/"), Problem.NOT_FINITE)
    assert finding.place == f"s3://{bucket.name}/in/a.libsvm:2"


def test_report__goes_through_json_and_tells_a_reader_everything(text):
    report = check(text("1 1:1\n0 1:nan\n2 150:1\n2\n"), feature_dim=100, predictor_type="binary_classifier")
    parsed = json.loads(json.dumps(report.as_dict()))
    assert parsed["ok"] is False
    assert [finding["kind"] for finding in parsed["findings"]] == [str(finding.kind) for finding in report.findings]
    assert [finding["harmful"] for finding in parsed["findings"]] == [False, True, True, True, False]
    lines = report.render().splitlines()
    assert lines[0].split() == ["files", "1", "(1", "libsvm)"]
    assert ["labels", "0", "(1),", "1", "(1),", "2", "(2)"] in [line.split() for line in lines]
    for finding in report.findings:
        assert any(finding.place in line and finding.kind in line for line in lines)
        assert any(finding.problem in line and finding.remedy in line for line in lines)
    assert "Hint: keys run to 149: feature_dim must be >= 150." in lines
    assert lines[-1] == "3 kinds of problem at which training would stop."


def test_report__does_not_fill_the_screen_with_files():
    findings = tuple(Finding(EMPTY_FILE, 1, f"{index}.pbr", None, "the file is empty.", "") for index in range(500))
    facts = {"files": 500, "formats": {}, "size_bytes": 0, "rows": 0, "entries": 0, "smallest_key": None,
             "largest_key": None, "largest_value": None, "labels": None, "feature_dim": None, "has_weights": False,
             "has_uids": False, "index_base": None}  # fmt: skip
    lines = CheckReport(findings, facts).render().splitlines()
    assert "       and 490 more: empty file" in lines
    assert len(lines) < 40
    assert lines[-1] == "Nothing at which training would stop."


def test_check__finds_keys_beyond_the_width_that_other_files_declare(tmp_path):
    pd.DataFrame({"x": [1.0, 2.0], "label": [0.0, 1.0]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.libsvm").write_text("1 49:1\n")
    report = check([str(tmp_path / "a.parquet"), str(tmp_path / "b.libsvm")], options=ReadOptions(index_base=0))
    assert not report.ok
    assert "rows declare 1 features, but keys run to 49" in report.render()
