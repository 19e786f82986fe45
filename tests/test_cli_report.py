"""``rayfm report``: what it takes, prints and exits with, and the page of a real run."""

import pytest
from click.testing import CliRunner

import rayfm
from rayfm.cli import cli
from tests.events import write_job
from tests.report.jobs import text_of
from tests.training.test_run import TASK, problem


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """A function that runs ``rayfm report`` where the jobs of the test are."""
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path))

    def invoke(*args):
        return CliRunner().invoke(cli, ["report", *map(str, args)], prog_name="rayfm")

    return invoke


def test_report__takes_a_name_or_a_directory_and_prints_where_the_page_is(invoke, tmp_path):
    directory = write_job(tmp_path)
    result = invoke("first")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path}/first/report.html\n", "")
    page = (tmp_path / "first" / "report.html").read_text()
    result = invoke(directory.uri, "--output", tmp_path / "elsewhere" / "page.html")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/elsewhere/page.html\n")
    assert page.startswith("<!doctype html>") and "<title>first: Completed</title>" in page


def test_report__of_no_job_says_what_was_looked_for(invoke, tmp_path):
    write_job(tmp_path)
    result = invoke("frist")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "rayfm: error: there is no training job 'frist'. Did you mean 'first'?\n"
    result = invoke(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert f"there is no training job {tmp_path}/nowhere" in result.stderr
    assert "Name its output path, or the address of its cluster." in result.stderr


def test_report__that_cannot_be_written_says_where(invoke, tmp_path):
    write_job(tmp_path)
    (tmp_path / "file").write_text("")
    result = invoke("first", "-o", tmp_path / "file" / "page.html")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"rayfm: error: {tmp_path}/file/page.html cannot be written")


@pytest.mark.usefixtures("no_leftovers")
def test_report__of_a_real_run_has_what_the_run_measured(invoke, tmp_path, ray_cluster):
    features, labels = problem(classifier=True)
    held_out = {"validation": (features[:200], labels[:200]), "test": (features[:300], labels[:300])}
    result = rayfm.train(
        features, labels=labels, **held_out, train_instance_count=2, job_name="real",
        hyperparameters=TASK | {"predictor_type": "binary_classifier", "epochs": 3, "optimizer": "adagrad"},
    )  # fmt: skip
    text = text_of(invoke("real").stdout.strip())
    values = [result.metrics[f"{channel}:binary_classification_cross_entropy"] for channel in
              ("train", "validation", "test")]  # fmt: skip
    assert "Log loss " + " ".join(f"{value:#.4g}" for value in values) in text
    assert f"ROC curve (AUC {result.metrics['test:auc']:.4f})" in text
    assert "300 rows for test" in text and "rank rows computing speed 0 900 " in text
    largest = abs(result.model.linear).argmax()
    weight = f"{result.model.linear[largest]:+.4g}".replace("-", "−")
    assert f"feature lowers or raises the score weight {largest} {weight}" in text
    assert all(part in text for part in ("Reading the data", "Computing", "Exchange between workers", "Evaluating"))
