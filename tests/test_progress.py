"""What is printed of a run, against lines recorded from SageMaker's jobs."""

import io
import json
import re

import pytest

from rayfm import progress
from rayfm.progress.live import Live
from tests.events import epoch, replayed, run

PREFIX = re.compile(r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (INFO|WARNING|ERROR) \d+\] ")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def printed(events):
    """The lines without their prefixes, which are checked."""
    stream = io.StringIO()
    watcher = progress.log_lines(stream)
    for event in events:
        watcher(event)
    lines = stream.getvalue().splitlines()
    for line in lines:
        assert PREFIX.match(line) or line.startswith("#metrics {")
    return [PREFIX.sub("", line) for line in lines]


@pytest.mark.parametrize(
    "line",
    [
        "#quality_metric: host=algo-1, epoch=0, batch=0 train rmse <loss>=3.846082752497988",
        "#quality_metric: host=algo-1, epoch=0, train rmse <loss>=1.8169458122088216",
        "#quality_metric: host=algo-1, test rmse <loss>=1.0002629948968227",
        "#test_score (algo-1) : ('rmse', 1.0002629948968227)",
        "#progress_metric: host=algo-1, completed 5.0 % of epochs",
        "#throughput_metric: host=algo-1, train throughput=105657.8710505651 records/second",
    ],
)
def test_log_lines__are_those_of_sagemaker(line):
    assert printed(run()).count(line) == 1


def test_log_lines__keep_sagemakers_order():
    lines = printed(run(epochs=1))
    order = [
        "#quality_metric: host=algo-1, epoch=0, batch=0 train rmse",
        "#quality_metric: host=algo-1, epoch=0, train rmse",
        "#quality_metric: host=algo-1, epoch=0, train mse",
        "#quality_metric: host=algo-1, epoch=0, train absolute_loss",
        "#quality_metric: host=algo-1, train rmse",
        "#progress_metric: host=algo-1, completed 100.0 %",
        "#throughput_metric",
        "#test_score (algo-1) : ('rmse'",
        "#test_score (algo-1) : ('absolute_loss'",
        "#quality_metric: host=algo-1, test rmse",
    ]
    places = [next(index for index, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert places == sorted(places)


@pytest.mark.parametrize(("epochs", "trained", "early"), [(3, 3, False), (9, 3, True)])
def test_log_lines__close_training_once_with_the_last_epoch(epochs, trained, early):
    closing = [
        line
        for line in printed(run(epochs=epochs, trained=trained, early=early))
        if line.startswith("#quality_metric: host=algo-1, train rmse")
    ]
    assert closing == ["#quality_metric: host=algo-1, train rmse <loss>=1.8169458122088216"]


def test_log_lines__mark_scores_and_name_every_host():
    running = [{"host": 2, "batch": 500, "train:binary_f_1.000": 0.5, "train:binary_classification_accuracy": 0.75}]
    lines = printed([{"event": "round", "time": 0.0, "epoch": 1, "rows": 9, "running": running}])
    assert lines == [
        "#quality_metric: host=algo-2, epoch=1, batch=500 train binary_classification_accuracy <score>=0.75",
        "#quality_metric: host=algo-2, epoch=1, batch=500 train binary_f_1.000 <score>=0.5",
    ]


def test_log_lines__say_when_there_is_no_test_data():
    assert printed(run(test=False)).count("Test data is not provided.") == 1
    assert "Test data is not provided." not in printed(run())


def test_log_lines__print_nan_as_sagemaker_does():
    assert "#quality_metric: host=algo-1, epoch=0, train rmse <loss>=nan" in printed(
        [next(run()), epoch(0, float("nan"))]
    )


def test_log_lines__metrics_are_json_with_sagemakers_keys():
    records = [json.loads(line.removeprefix("#metrics ")) for line in printed(run(epochs=1)) if line[:9] == "#metrics "]
    update, seen = records[1], records[2]
    assert list(update) == ["StartTime", "EndTime", "Dimensions", "Metrics"]
    assert (update["StartTime"], update["EndTime"]) == (1009.5, 1010.0)
    assert update["Dimensions"] == {
        "Algorithm": "factorization-machines",
        "Host": "algo-1",
        "Operation": "training",
        "epoch": 0,
    }
    assert update["Metrics"] == {"update.time": {"sum": 500.0, "count": 1, "min": 500.0, "max": 500.0}}
    assert seen["Dimensions"]["Meta"] == "training_data_iter"
    assert seen["Metrics"]["Total Records Seen"]["sum"] == 80000
    times = {name: numbers["sum"] for name, numbers in records[-1]["Metrics"].items()}
    assert times == {"totaltime": 13000.0, "setuptime": 3000.0}


def test_log_lines__warn_of_notes_and_report_a_failure():
    stream = io.StringIO()
    watcher = progress.log_lines(stream)
    for event in list(run(notes=["features are counted from 1"]))[:3]:
        watcher(event)
    watcher({"event": "end", "time": 1.0, "status": "Failed", "reason": "train.txt:3: bad"})
    *_, note, failure = stream.getvalue().splitlines()
    assert re.search(r" WARNING \d+\] features are counted from 1$", note)
    assert re.search(r" ERROR \d+\] Training job failed: train\.txt:3: bad$", failure)


def test_watching__is_silent_when_quiet():
    stream = Terminal()
    with progress.watching(quiet=True, stream=stream) as watcher:
        for event in run():
            watcher(event)
    assert stream.getvalue() == ""


def test_watching__prints_log_lines_to_a_file():
    stream = io.StringIO()
    with progress.watching(stream=stream) as watcher:
        for event in run():
            watcher(event)
    assert "#quality_metric" in stream.getvalue()


def shown(monkeypatch, events, columns="120", term="xterm-256color"):
    """What a terminal gets, without control sequences."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    with progress.watching(stream=stream) as watcher:
        assert isinstance(watcher, Live)
        for event in events:
            watcher(event)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()), stream.getvalue()


def test_live__leaves_a_line_per_phase_and_epoch(monkeypatch):
    events = run(epochs=2, trained=2, notes=["a note"], **{"validation:rmse": 0.95, "best": True})
    text, _ = shown(monkeypatch, events)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    for line in (
        "directory out/first",
        "train: 80,000 rows, 160,000 entries, 2,625 features, 0.8 s",
        "note: a note",
        "2 workers ready in 1.5 s",
        "epoch  train rmse  valid. rmse   rows/s",
        "1/2      1.8169         0.95    106 k *",
        "2/2      1.8169         0.95    106 k *",
        "test: rmse 1.0003, mse 1.0005, mae 0.50013",
        "done in 13.0 s",
    ):
        assert lines.count(line) == 1, line


def test_live__shows_a_bar_and_takes_it_away(monkeypatch):
    events = [event for event in run(epochs=2, trained=1) if event["event"] != "upload"]
    text, raw = shown(monkeypatch, events)
    assert "epoch 2/2" in text and "50 %" in text
    assert raw.endswith("\x1b[2K") and "\x1b[?25h" in raw  # the bar's line is erased, the cursor is back


def test_live__a_dumb_terminal_gets_lines_only(monkeypatch):
    text, raw = shown(monkeypatch, run(epochs=1), term="dumb")
    assert raw == text
    assert "1/1      1.8169" in text and "━" not in text


def test_live__obeys_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, raw = shown(monkeypatch, run(epochs=1, **{"best": True}))
    assert not re.search(r"\x1b\[[0-9;]*3\dm", raw)


def test_live__a_narrow_terminal_loses_the_speed_first(monkeypatch):
    events = run(epochs=1000, **{"validation:rmse": 0.95, "validation:auc": 0.5})
    text, _ = shown(monkeypatch, events, columns="55")
    header = next(line for line in text.splitlines() if "train rmse" in line)
    assert "valid. auc" in header and "rows/s" not in header


def test_live__is_restored_after_an_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), progress.watching(stream=stream):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in stream.getvalue()


def test_log_lines__have_the_time_of_the_event_in_utc():
    stream = io.StringIO()
    progress.log_lines(stream)({**next(run()), "time": 1588612345.9})
    assert stream.getvalue().startswith("[05/04/2020 17:12:25 INFO ")


def test_log_lines__of_a_run_that_is_over_are_those_it_printed():
    events = list(run(epochs=2, trained=2, **{"train:mse": float("nan")}))
    assert printed(replayed(events)) == printed(events)
    assert "#quality_metric: host=algo-1, epoch=1, train mse <loss>=nan" in printed(events)


def test_live__shows_a_run_that_is_over_with_undefined_measures(monkeypatch):
    events = replayed(run(epochs=1, **{"validation:rmse": float("nan")}))
    text, _ = shown(monkeypatch, events)
    assert re.search(r"1/1 +1\.8169 +nan +106 k", text)


def test_log_lines__of_a_restart_warn_and_initialize_no_second_time():
    lines = printed(run(restart=True))
    warning = "epoch 1, round 0 failed on rank 1. Training goes on from epoch 1 with new workers."
    assert warning in lines
    assert lines.index(warning) < lines.index("Started 2 workers in 0.50 s")
    assert sum("initialize.time" in line for line in lines) == 1
    [times] = [json.loads(line.removeprefix("#metrics ")) for line in lines if "setuptime" in line]
    assert times["Metrics"]["setuptime"]["sum"] == 3000


def test_live__of_a_restart_says_why_and_goes_on_where_it_was(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Live(stream) as live:
        for event in run(trained=7, restart=True):
            live(event)
            if event["event"] == "compile":
                reached = live._bar.tasks[0].description
    assert "epoch 1, round 0 failed on rank 1. Going on from epoch 8 with new workers." in stream.getvalue()
    assert reached == "epoch 8/20"


def test_epochs__of_several_workers_have_the_time_of_exchange(monkeypatch):
    events = list(run(trained=2, exchange_seconds=0.125))
    text, _ = shown(monkeypatch, events)
    assert "epoch  train rmse   rows/s  exchange" in text
    assert "1/20      1.8169    106 k       25%" in text
    narrow, _ = shown(monkeypatch, events, columns="30")
    assert "rows/s" in narrow
    assert "exchange" not in narrow
    [first, _] = [json.loads(line.removeprefix("#metrics ")) for line in printed(events) if "update.time" in line]
    assert first["Metrics"]["exchange.time"]["sum"] == 125
    assert not any("exchange" in line for line in printed(run()))
