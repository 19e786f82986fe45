"""What the page of a job says, whatever became of the job."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from rayfm import report
from rayfm.errors import ResourceError, StorageError
from rayfm.metrics import RankingCounts
from rayfm.training.jobs import TrainingJob
from tests.events import run, write_job
from tests.report.jobs import a_model, columns, ended, events, reported, text_of

TASKS = ("regressor", "binary_classifier")


@pytest.mark.parametrize("task", TASKS)
def test_page__of_a_good_run_says_so_with_its_measures(tmp_path, task):
    raw, labels = columns(task)
    text = text_of(reported(tmp_path, list(ended(*events(task), best_epoch=2)), model=a_model(task)))
    if task == "regressor":
        value, nothing = np.sqrt(np.mean((raw - labels) ** 2)), labels.std()
        assert (
            f"RMSE of the test rows is {value:.4f}, {1 - value / nothing:.0%} below that of answering the mean" in text
        )
        assert "[Predicted and actual. The mean of the actual values is 0.0" in text
        assert re.search(r"\[Errors\. Half of the errors lie between -0\.6\d+ and 0\.6\d+;", text)
    else:
        auc = RankingCounts.of(raw, labels).auc()
        assert "Log loss of the test rows is 0." in text and "the share of positive rows every time (0.69" in text
        assert f"ROC curve (AUC {auc:.4f})" in text and f"AUC, test rows {auc:.4f}" in text
        assert "[Calibration. Over 15 groups, predicted and observed differ by" in text
        right = (raw >= 0) == labels
        assert f"right {right[raw < 0].mean():.1%} {right[raw >= 0].mean():.1%} {right.mean():.1%}" in text
    assert "Epoch of the model 3 of 3; best on the validation rows" in text
    assert "best epoch" in text and "The last epoch was the best" in text
    for part in ("Reading the data 2.5 s (21%)", "Computing 750 ms (6%)", "Exchange between workers 1.5 s (12%)",
                 "Evaluating", "Writing the model 2.0 s (17%)"):  # fmt: skip
        assert part in text
    assert "0 1,200 600 ms 2 k rows/s" in text and "Worker 0 computed 1.3 times as long as the mean" in text
    assert re.search(r"29 \+2 28 \+1\.897 .* 9 −0\.06897 11 \+0\.1379|29 \+2 28 \+1\.897", text)
    assert "num_factors Length of each feature's factor vector. 2" in text


def test_page__of_an_overfitted_run_says_which_epoch_was_kept(tmp_path):
    told = list(ended(*events(qualities=(0.5, 1.0, 1.6, 2.0)), best_epoch=1))
    text = text_of(reported(tmp_path, told, model=a_model()))
    assert "After epoch 2 the model fits the training rows ever better and the validation rows worse" in text
    assert "Epoch of the model 2" in text


@pytest.mark.parametrize("task", TASKS)
def test_page__of_a_model_that_learned_nothing_says_so(tmp_path, task):
    path = reported(tmp_path, list(ended(*events(task, qualities=(0.0, 0.0)), best_epoch=1)), model=a_model(task))
    assert "no better than answering the" in text_of(path)
    assert '<p class="verdict bad">' in Path(path).read_text()


def test_page__of_a_failed_job_has_the_reason(tmp_path):
    end = {"status": "Failed", "reason": "train.libsvm:3: feature 0 is nan. Fix the line.", "error": "DataError"}
    text = text_of(reported(tmp_path, [*list(events())[:2], {"event": "end", "time": 1002.0, **end}], **end))
    assert "The job failed before the first epoch was done." in text
    assert end["reason"] in text and "error DataError" in text
    assert "No epoch is done, so nothing was measured." in text
    assert "A job writes its model when it completes." in text
    assert "The job ended before they were looked at." in text


def test_page__of_a_running_job_shows_what_is_there(tmp_path):
    told = [event for event in events() if event["event"] not in ("scores", "test")][:-1]
    text = text_of(reported(tmp_path, told, ended=None, alive=9e9))
    assert "first InProgress Running after 2 epochs. RMSE of the validation rows is" in text
    assert "Best epoch so far 2 2 done of 3" in text
    assert "They are looked at when training is over." in text


def test_page__of_a_stopped_job_says_that_there_is_no_model(tmp_path):
    end = {"status": "Stopped", "reason": "the job was stopped."}
    told = [event for event in events() if event["event"] not in ("scores", "test")]
    text = text_of(reported(tmp_path, [*told, {"event": "end", "time": 1009.0, **end}], **end))
    assert "Stopped after 3 epochs, without a model." in text and "the job was stopped." in text


def test_page__of_an_older_version_says_what_is_not_there(tmp_path):
    text = text_of(reported(tmp_path, run(restart=True, notes=["libsvm text counts from 1."])))
    assert "by a version of rayfm that did not record how they lie" in text
    assert "What each worker did is not recorded" in text
    assert "New workers took the places of lost ones once" in text and "epoch 1, round 0 failed on rank 1." in text
    assert "train data: libsvm text counts from 1." in text
    assert "model.safetensors" in text  # which is missing
    bare = reported(tmp_path, run(), name="bare", versions=None, details=None, seed=None, alive=None, channels={})
    assert "RMSE of the test rows is 1.000" in text_of(bare)


def test_page__without_held_out_rows_says_what_to_do(tmp_path):
    text = text_of(reported(tmp_path, list(ended(*events(channels=()), best_epoch=2)), model=a_model(index_base=1)))
    assert "training rows alone say little about new ones" in text
    assert "name validation or test data" in text and "nothing held out" in text
    assert "There are no validation rows: the last epoch was kept" in text
    assert "add 1 to find them there" in text


def test_page__of_measures_that_are_not_finite(tmp_path):
    told = [event | {name: None for name in event if name.startswith("validation:")} for event in events()]
    assert "not defined" in text_of(reported(tmp_path, list(ended(*told, best_epoch=2)), model=a_model()))


def test_page__leaves_text_of_users_text(tmp_path):
    evil = '<img src="http://127.0.0.1:1/x" onerror="alert(1)"><script>alert(2)</script>&amp;$\\frac'
    status = {"details": {evil: evil}, "reason": evil, "channels": {evil: evil}, "status": "Stopped"}
    path = reported(tmp_path, [*events(), {"event": "restart", "reason": evil, "time": 1011.0}], **status)
    page = Path(path).read_text()
    assert "<script" not in page and "<img" not in page and text_of(path).count(evil) == 6


def test_file__is_where_it_was_asked_for_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(report.time, "time", lambda: 1_000_000.0)
    told = list(ended(*events("binary_classifier"), best_epoch=2))
    path = reported(tmp_path, told, model=a_model("binary_classifier"))
    assert path == f"{tmp_path}/first/report.html"
    job = TrainingJob.attach("first", output_path=str(tmp_path))
    other = report.write_report(job, str(tmp_path / "there" / "page.html"))
    assert Path(other).read_text() == Path(path).read_text()
    assert len(Path(path).read_text()) < 300_000


def test_report__of_a_damaged_directory_is_one_clear_error(tmp_path):
    directory = write_job(tmp_path)
    (tmp_path / "first" / "metrics.jsonl").write_text('{"event": "job"}\nnonsense\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl must have a JSON object on each line"):
        report.write_report(TrainingJob(directory))
    (tmp_path / "first" / "job.json").write_text("{}")
    with pytest.raises(StorageError, match=r"job\.json must be the status of a job"):
        report.write_report(TrainingJob(directory))


def test_report__without_its_libraries_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "rayfm.report.page", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ResourceError, match=r"pip install 'rayfm\[report\]'"):
        report.write_report(TrainingJob(write_job(tmp_path)))
