"""Jobs that nobody ran, to report on, and how their pages read."""

import html
import re

import numpy as np

from rayfm.distributions import ErrorCounts, record
from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import RankingCounts, sums_for
from rayfm.model import FactorizationMachine
from rayfm.report import write_report
from rayfm.training.jobs import TrainingJob
from tests.events import write_job

WORKERS = [{"rank": 0, "rows": 400, "seconds": 0.2}, {"rank": 1, "rows": 400, "seconds": 0.1}]


def columns(task, quality=1.0, rows=2000):
    """Raw scores and labels of a model that is as good as that."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 2, rows)
    if task == "regressor":
        return quality * raw + 3, raw + rng.normal(3, 1, rows)
    return quality * raw, (rng.random(rows) < 1 / (1 + np.exp(-raw))).astype(float)


def measured(channel, task, raw, labels):
    found = sums_for(task).of(raw, labels).values()
    if task != "regressor":
        found["auc"] = RankingCounts.of(raw, labels).auc()
    return {f"{channel}:{name}": value for name, value in found.items() if channel != "train" or name != "auc"}


def events(task="regressor", qualities=(0.3, 0.7, 1.0), channels=("validation", "test"), **job):
    """A run of an epoch for each of `qualities`, which the validation rows see as they are; no end."""
    counts = RankingCounts if task != "regressor" else ErrorCounts
    values = Hyperparameters.of(num_factors=2, predictor_type=task, epochs=len(qualities), **job).as_dict()
    yield {"event": "job", "time": 1000.0, "hyperparameters": values}
    yield {"event": "reading", "time": 1000.5}
    for name in ("train", *channels):
        yield {"event": "read", "time": 1003.0, "channel": name, "rows": 800, "feature_dim": 30, "notes": []}
    yield {"event": "compile", "time": 1004.0, "seconds": 1.0}
    best = int(np.argmin([abs(quality - 1) for quality in qualities]))
    for number, quality in enumerate(qualities):
        told = measured("train", task, *columns(task, min(1.0, quality + 0.1)))
        if "validation" in channels:
            told |= measured("validation", task, *columns(task, quality))
            told |= {"best": number <= best, "evaluate_seconds": 0.25}
        times = {"time": 1005.0 + number, "seconds": 0.75, "exchange_seconds": 0.5, "records_per_second": 1066.7}
        yield {"event": "epoch", "epoch": number, "workers": WORKERS, **times, **told}
    for channel in channels:
        kept = columns(task, qualities[best] if "validation" in channels else qualities[-1])
        yield {"event": "scores", "time": 1009.0, "channel": channel, "epoch": best, **record(counts.of(*kept))}
        if channel == "test":
            yield {"event": "test", "time": 1009.5, "seconds": 0.5, **measured("test", task, *kept)}


def ended(*told, status="Completed", best_epoch=0, **more):
    """Those events, and the end."""
    yield from told
    yield {"event": "upload", "time": 1010.0}
    yield {"event": "end", "time": 1012.0, "seconds": 12.0, "status": status, "best_epoch": best_epoch, **more}


def a_model(task="regressor", **facts):
    linear = np.linspace(-1, 2, 30, dtype=np.float32)
    return FactorizationMachine(0.25, linear, np.zeros((30, 2), np.float32), task, facts=facts)


def reported(tmp_path, told, *, model=None, name="first", **status):
    """Write the page of a job that these events tell of; return where it is."""
    directory = write_job(tmp_path, name, events=told, **status)
    if model is not None:
        model.save(directory.model_uri)
    return write_report(TrainingJob(directory))


def text_of(path):
    """What a reader of the page reads, plots as their descriptions."""
    with open(path, encoding="utf-8") as file:
        page = file.read()
    page = re.sub(r"<style>.*?</style>|<head>.*?</head>", "", page, flags=re.DOTALL)
    page = re.sub(r'<svg[^>]*aria-label="([^"]*)".*?</svg>', r" [\1] ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
