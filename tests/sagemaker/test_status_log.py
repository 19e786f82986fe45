"""What waiting for a job prints, as SageMaker's SDK does."""

import io
import json
import re

import pytest

from rayfm.errors import HyperparameterError
from rayfm.sagemaker.status_log import StatusLog
from tests.events import job_event, replayed, run

TRANSITION = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\w+) - .+")
LOG_LINE = re.compile(r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d [A-Z]+ \d+\] |#metrics \{")


def printed(events, **settings):
    stream = io.StringIO()
    log = StatusLog(stream, **settings)
    for event in events:
        log(event)
    return stream.getvalue().splitlines()


def ended(status, reason):
    return {"status": status, "reason": reason, "error": "DataError"}


def test_status_log__prints_sagemakers_transitions():
    assert printed(run(), logs=False) == [
        "1970-01-01 00:16:40 Starting - Starting the training job",
        "1970-01-01 00:16:40 Downloading - Downloading input data",
        "1970-01-01 00:16:42 Training - Training image download completed. Training in progress.",
        "1970-01-01 00:16:52 Uploading - Uploading generated training model",
        "1970-01-01 00:16:53 Completed - Training job completed",
    ]


def test_status_log__puts_the_log_between_the_transitions_and_the_seconds_at_the_end():
    lines = printed(run(epochs=1))
    places = [TRANSITION.match(line)[1] for line in lines if TRANSITION.match(line)]
    assert places == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert lines[-2:] == ["Training seconds: 26", "Billable seconds: 26"]  # 12.8 s, rounded up, of 2 instances
    between = [line for line in lines[:-2] if not TRANSITION.match(line)]
    assert all(LOG_LINE.match(line) for line in between)
    order = ["Starting - ", "writes to out/first", "Downloading - ", "Read channel train", "Training - ",
             "epoch=0, batch=0 train rmse", "#test_score", "Uploading - ", '"totaltime"', "Completed - "]  # fmt: skip
    found = [next(index for index, line in enumerate(lines) if part in line) for part in order]
    assert found == sorted(found)


def test_status_log__of_two_channels_downloads_once():
    test = {"event": "read", "time": 1001.5, "channel": "test", "rows": 1, "entries": 1, "feature_dim": 2}
    events = list(run())
    events.insert(2, {**test, "notes": [], "seconds": 0.4})
    assert sum(" Downloading - " in line for line in printed(events)) == 1


def test_status_log__of_a_run_that_is_over_is_what_it_printed():
    assert printed(replayed(run())) == printed(run())


@pytest.mark.parametrize(
    ("end", "last", "seconds"),
    [
        (ended("Failed", "rows.txt:3: bad"), "Failed - Training job failed", False),
        (ended("Stopped", "the job was stopped."), "Stopped - Training job stopped", True),
        ({**ended("Stopped", "the job was stopped after max_run = 10 s."), "error": "MaxRunError"},
         "MaxRuntimeExceeded - Training job runtime exceeded MaxRuntimeInSeconds provided", True),
    ],
)  # fmt: skip
def test_status_log__says_how_a_job_ended(end, last, seconds):
    lines = printed(run(end=end))
    assert any("Training seconds" in line for line in lines) is seconds  # the SDK raises before it prints them
    assert [line[20:] for line in lines if TRANSITION.match(line)][-1] == last
    assert any(f"Training job {end['status'].lower()}: {end['reason']}" in line for line in lines)


def test_status_log__has_no_seconds_of_a_job_that_read_nothing():
    events = [job_event(), {"event": "end", "time": 1001.0, "seconds": 1.0, **ended("Stopped", "the job was stopped.")}]
    assert printed(events)[-1] == "1970-01-01 00:16:41 Stopped - Training job stopped"


@pytest.mark.parametrize(
    ("logs", "wanted"),
    [(True, True), ("All", True), ("Training", True), (["Training", "Rules"], True),
     (False, False), ("None", False), ("Rules", False), ([], False)],
)  # fmt: skip
def test_status_log__takes_the_sdks_values_of_logs(logs, wanted):
    assert any(line.endswith("% of epochs") for line in printed(run(), logs=logs)) is wanted


@pytest.mark.parametrize("logs", ["all", ["Everything"], None])
def test_status_log__refuses_other_values_of_logs(logs):
    with pytest.raises(HyperparameterError, match=r"logs must be True, False or one of All, Training, Rules, None"):
        StatusLog(logs=logs)


def test_status_log__writes_to_standard_output(capsys):
    StatusLog(logs=False)(job_event())
    assert capsys.readouterr().out == "1970-01-01 00:16:40 Starting - Starting the training job\n"


def test_status_log__metrics_are_those_of_the_events():
    records = [json.loads(line[9:]) for line in printed(run()) if line.startswith("#metrics ")]
    assert records[-1]["EndTime"] == 1013.0
