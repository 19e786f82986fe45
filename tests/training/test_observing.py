"""What operators see of training jobs, as Prometheus would scrape it."""

import re
import time

import pytest
import ray
import requests

from rayfm.training.driver import submit
from rayfm.training.observing import TrainingObserver
from tests.events import epoch, job_event
from tests.training.test_run import TASK, problem


def exported(*patterns):
    """Wait until Ray has exported a line for each pattern; return those that never came, and what came last."""
    missing, deadline = set(patterns), time.monotonic() + 30
    while True:
        text = scraped()
        missing = {pattern for pattern in missing if not re.search(pattern, text)}
        if not missing or time.monotonic() > deadline:
            return missing, re.findall(".*rayfm_training.*", text)
        time.sleep(0.2)


def scraped():
    return requests.get(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", timeout=10).text


def test_metrics__have_what_events_tell(ray_cluster):
    observer = TrainingObserver("told")
    workers = [{"rank": 0, "rows": 30, "seconds": 0.5}, {"rank": 1, "rows": 10, "seconds": 0.25}]
    idle = {"rank": 2, "rows": 0, "seconds": 0.0}
    observer(job_event("told", epochs=7))
    for _ in range(2):
        observer({"event": "round", "epoch": 0, "rows": 40, "running": [], "workers": [*workers, idle]})
    observer({"event": "restart", "reason": "", "epoch": 0})
    measured = {"validation:rmse": 0.75, "validation:mse": None}
    observer(epoch(0, 2.5, exchange_seconds=0.125, **measured))
    observer({"event": "test", "test:rmse": 1.5})
    observer({"event": "end", "status": "Completed"})
    missing, text = exported(
        'rayfm_training_rows_total{.*job_name="told".*rank="0".*} 60.0',
        'rayfm_training_rows_total{.*job_name="told".*rank="1".*} 20.0',
        'rayfm_training_computing_seconds_total{.*job_name="told".*rank="1".*} 0.5',
        'rayfm_training_worker_rows_per_second{.*job_name="told".*rank="0".*} 60.0',
        'rayfm_training_rows_per_second{.*job_name="told".*} 105657.87',
        'rayfm_training_exchange_share{.*job_name="told".*} 0.25',
        'rayfm_training_measure{.*channel="train".*job_name="told".*metric="rmse".*} 2.5',
        'rayfm_training_measure{.*channel="validation".*job_name="told".*metric="rmse".*} 0.75',
        'rayfm_training_measure{.*channel="test".*job_name="told".*metric="rmse".*} 1.5',
        'rayfm_training_epochs{.*job_name="told".*} 1.0',
        'rayfm_training_epochs_wanted{.*job_name="told".*} 7.0',
        'rayfm_training_restarts_total{.*job_name="told".*} 1.0',
        'rayfm_training_running{.*job_name="told".*} 0.0',
    )
    assert not missing, text
    assert not [line for line in text if 'metric="mse"' in line and "validation" in line]  # it was not finite
    assert not [line for line in text if 'rank="2"' in line]


def test_remind__brings_back_gauges_that_ray_has_forgotten(ray_cluster):
    observer, done = TrainingObserver("quiet"), 'rayfm_training_epochs{.*job_name="quiet".*} 3.0'
    observer(epoch(2, 2.5, exchange_seconds=0.0))
    assert not exported(done)[0]
    deadline = time.monotonic() + 30
    while re.search(done, scraped()):
        assert time.monotonic() < deadline, "Ray keeps gauges by now: `remind` is not needed any more"
        time.sleep(0.2)
    observer.remind()
    assert not exported(done)[0]


@pytest.mark.usefixtures("no_leftovers")
def test_metrics__of_a_job_come_while_it_runs(ray_cluster, tmp_path):
    features, labels = problem(100)
    settings = {"hyperparameters": TASK | {"epochs": 1_000_000}, "train_instance_count": 2}
    job = submit(features, labels=labels, output_path=str(tmp_path), job_name="observed", **settings)
    try:
        missing, text = exported(
            'rayfm_training_running{.*job_name="observed".*} 1.0',
            'rayfm_training_rows_total{.*job_name="observed".*rank="0".*} [1-9]',
            'rayfm_training_rows_total{.*job_name="observed".*rank="1".*} [1-9]',
            'rayfm_training_measure{.*channel="train".*job_name="observed".*metric="rmse".*} [0-9.]+',
            r'rayfm_training_exchange_share{.*job_name="observed".*} 0\.\d+',
            'rayfm_training_epochs_wanted{.*job_name="observed".*} 1e',
        )
        assert not missing, text
    finally:
        job.stop()
        job.dismiss()
