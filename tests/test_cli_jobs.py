"""``rayfm jobs``: what its commands take, print and exit with."""

import json
import re
import time

import numpy as np
import pytest
from click.testing import CliRunner

from rayfm.cli import cli
from rayfm.training.jobs import TrainingJob
from tests.events import job_event, run, write_job

COMMANDS = ("list", "show", "follow", "stop")
STOPPED = {"status": "Stopped", "reason": "the job was stopped.", "error": "StoppedError"}
FAILED = {"status": "Failed", "reason": "rows.txt:3: bad.", "error": "DataError"}


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """A function that runs ``rayfm jobs`` where the jobs of the test are."""
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path))

    def invoke(*args):
        return CliRunner().invoke(cli, ["jobs", *map(str, args)], prog_name="rayfm")

    return invoke


def test_help__is_there_for_every_command_with_examples(invoke):
    overview = invoke("--help").stdout
    assert invoke().stdout == overview
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", overview, re.M)
        text = invoke(name, "--help").stdout
        assert text.startswith(f"Usage: rayfm jobs {name} ")
        assert text.count("  # ") >= 2 and f"  rayfm jobs {name}" in text


def test_wrong_command__exits_with_2_and_names_the_nearest(invoke):
    result = invoke("lst")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == ("rayfm: error: No such command 'lst'. Did you mean 'list'?\nTry 'rayfm jobs --help'.\n")


def test_list__has_a_line_for_each_job_the_newest_first(invoke, tmp_path):
    write_job(tmp_path, "first", events=run(trained=2))
    write_job(tmp_path, "second", events=run(end=FAILED, **{"validation:rmse": 0.95}), started=1000.0 + 86400)
    write_job(tmp_path, "third", events=[job_event()], started=time.time(), alive=time.time())
    (tmp_path / "no-job").mkdir()
    header, *lines = invoke("list").stdout.splitlines()
    assert re.split(r"  +", header) == ["name", "status", "started (UTC)", "duration", "epochs", "last measure"]
    third, second, first = (re.split(r"  +", line) for line in lines)
    assert first == ["first", "Completed", "1970-01-01 00:16:40", "13.0 s", "2/20", "train rmse 1.8169"]
    assert (second[:2], second[-2:]) == (["second", "Failed"], ["1/20", "validation rmse 0.95"])
    assert (third[:2], third[-1]) == (["third", "InProgress"], "0/20")


def test_list__json_is_a_list_of_objects(invoke, tmp_path):
    assert json.loads(invoke("list", "--json").stdout) == []
    directory = write_job(tmp_path, events=run(**{"validation:rmse": float("nan")}))
    assert json.loads(invoke("list", "--json").stdout, parse_constant=pytest.fail) == [
        {
            "name": "first", "status": "Completed", "started": "1970-01-01T00:16:40Z", "seconds": 13.0,
            "epochs_done": 1, "epochs": 20, "measure": {"validation:rmse": None}, "directory": directory.uri,
        }
    ]  # fmt: skip
    assert "validation rmse nan" in invoke("list").stdout


def test_list__of_nothing_says_so(invoke, tmp_path):
    result = invoke("list", "--output-path", tmp_path / "empty")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"rayfm: there are no jobs in {tmp_path}/empty.\n"


def test_show__has_facts_metrics_and_hyperparameters(invoke, tmp_path):
    directory = write_job(tmp_path, details={"role": "me"})
    text = invoke("show", "first").stdout
    for line in (
        r"status +Completed", rf"directory +{directory.uri}", r"duration +13\.0 s", r"workers +2", r"epochs +1 of 20",
        r"best epoch +1", r"  train +s3://bucket/train\.manifest", r"  test:rmse +1\.00026", r"  num_factors +2",
        r"  role +me",
    ):  # fmt: skip
        assert re.search(rf"^{line}$", text, re.M), line
    assert invoke("show", directory.uri).stdout == text


def test_show__says_why_a_job_failed(invoke, tmp_path):
    write_job(tmp_path, events=run(end=FAILED))
    assert re.search(r"^reason +rows\.txt:3: bad\.$", invoke("show", "first").stdout, re.M)
    found = json.loads(invoke("show", "first", "--json").stdout)
    assert (found["status"], found["reason"], found["error"]) == ("Failed", "rows.txt:3: bad.", "DataError")
    assert (found["epochs_done"], found["model"]) == (1, f"{tmp_path}/first/model.safetensors")


@pytest.mark.parametrize("command", ["show", "follow", "stop"])
def test_name__that_is_mistyped_is_met_with_the_nearest(invoke, tmp_path, command):
    write_job(tmp_path, "first")
    result = invoke(command, "frist")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "rayfm: error: there is no training job 'frist'. Did you mean 'first'?\n"
    far = invoke(command, "elsewhere")
    assert far.exit_code == 1
    assert "there is no training job elsewhere" in far.stderr and "Did you mean" not in far.stderr


def test_follow__of_a_job_that_is_over_prints_its_log_and_its_model(invoke, tmp_path):
    write_job(tmp_path)
    result = invoke("follow", "first")
    assert result.exit_code == 0, result.output
    assert "[01/01/1970 00:16:52 INFO" in result.stdout
    assert "#quality_metric: host=algo-1, epoch=0, train rmse <loss>=1.8169458122088216\n" in result.stdout
    assert re.search(rf"^model: {tmp_path}/first/model\.safetensors$", result.stdout, re.M)
    assert re.search(r"^  test:rmse +1\.00026$", result.stdout, re.M)
    assert invoke("follow", "first", "--quiet").output == ""


@pytest.mark.parametrize("end", [FAILED, STOPPED, FAILED | {"error": "HyperparameterError"}])
def test_follow__exits_with_1_when_the_job_did_not_complete(invoke, tmp_path, end):
    write_job(tmp_path, events=run(end=end))
    result = invoke("follow", "first", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (f"rayfm: error: Error for Training job first: {end['status']}. Reason: {end['reason']}\n")


def test_follow__interrupted_says_that_the_job_goes_on(invoke, tmp_path, monkeypatch):
    write_job(tmp_path)

    def interrupted(job, watcher):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingJob, "wait", interrupted)
    result = invoke("follow", "first")
    assert result.exit_code == 130
    assert result.stderr == "rayfm: first goes on; `rayfm jobs stop first` stops it.\n"


def test_stop__of_a_job_that_is_over_says_so(invoke, tmp_path):
    write_job(tmp_path)
    result = invoke("stop", "first")
    assert (result.exit_code, result.stdout) == (0, "first is over already: Completed.\n")


@pytest.mark.usefixtures("no_leftovers")
def test_run__is_listed_stopped_and_followed_to_its_end(invoke, ray_cluster, tmp_path):
    from rayfm.training.driver import submit

    task = {"num_factors": 1, "predictor_type": "regressor", "mini_batch_size": 5, "epochs": 1_000_000}
    job = submit(np.eye(20), labels=np.arange(20.0), hyperparameters=task, job_name="real")
    try:
        assert json.loads(invoke("list", "--json").stdout)[0]["status"] == "InProgress"
        for event in job.events():
            if event["event"] == "epoch":
                break
        assert re.search(r"^real +InProgress .* [1-9]\d*/1000000 +train rmse", invoke("list").stdout, re.M)
        result = invoke("stop", "real")
        assert (result.exit_code, result.stdout) == (0, "real has stopped.\n")
        followed = invoke("follow", "real")
        assert followed.exit_code == 1
        assert "epoch=0, train rmse" in followed.stdout
        reason = "Reason: the job was stopped. It can be resumed from epoch "
        assert f"Error for Training job real: Stopped. {reason}" in followed.stderr
    finally:
        job.dismiss()
