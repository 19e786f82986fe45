"""Events of runs that nobody ran, and directories of such jobs."""

import json

from rayfm.hyperparameters import Hyperparameters
from rayfm.training.job import JobDirectory


def measures(channel, rmse):
    return {f"{channel}:rmse": rmse, f"{channel}:mse": rmse**2, f"{channel}:absolute_loss": rmse / 2}


def epoch(number, rmse, **more):
    event = {"event": "epoch", "epoch": number, "time": 1010.0, "seconds": 0.5, "records_per_second": 105657.8710505651}
    return {**event, **measures("train", rmse), **more}


def job_event(name="first", epochs=20, workers=2, directory="out/first"):
    values = Hyperparameters.of(num_factors=2, predictor_type="regressor", epochs=epochs).as_dict()
    facts = {"job_name": name, "directory": directory, "workers": workers, "hyperparameters": values}
    return {"event": "job", "time": 1000.0, **facts}


def run(*, epochs=20, trained=1, notes=(), test=True, early=False, restart=False, end=None, **per_epoch):
    """Yield the events of a run of 14 s; the values are those that SageMaker once printed."""
    read = {"rows": 80000, "entries": 160000, "feature_dim": 2625, "notes": list(notes), "seconds": 0.8}
    running = [{"host": 1, "batch": 0, "train:rmse": 3.846082752497988}]
    yield job_event(epochs=epochs)
    yield {"event": "reading", "time": 1000.2}
    yield {"event": "read", "time": 1001.0, "channel": "train", **read}
    yield {"event": "start", "time": 1002.0, "workers": 2, "seconds": 1.5}
    yield {"event": "compile", "time": 1003.0, "seconds": 1.0}
    for number in range(trained):
        yield {"event": "round", "time": 1004.0, "epoch": number, "rows": 40000, "running": running}
        yield epoch(number, 1.8169458122088216, **per_epoch)
    if restart:
        yield {"event": "restart", "time": 1006.0, "reason": "epoch 1, round 0 failed on rank 1.", "epoch": trained}
        yield {"event": "start", "time": 1007.0, "workers": 2, "seconds": 0.5}
        yield {"event": "compile", "time": 1008.0, "seconds": 0.25}
    if early:
        yield {"event": "early stop", "time": 1011.0, "epoch": trained - 1, "best_epoch": 0, "metric": "rmse"}
    tested = measures("test", 1.0002629948968227) if test else {}
    if test:
        yield {"event": "test", "time": 1012.0, **tested}
    yield {"event": "upload", "time": 1012.5}
    metrics = {**measures("train", 1.8169458122088216), **tested}
    completed = {"status": "Completed", "metrics": metrics, "best_epoch": trained - 1}
    yield {"event": "end", "time": 1013.0, "seconds": 13.0, **(end or completed)}


def write_job(output_path, name="first", *, events=None, **status):
    """Write the directory of a job of 14 s that `events` tell of; `status` changes its job.json."""
    directory = JobDirectory(str(output_path / name))
    file = directory.open_metrics()
    events = list(run()) if events is None else list(events)
    for number, event in enumerate(events):
        file.write({**event, "number": number})
    end = events[-1] if events[-1]["event"] == "end" else {"status": "InProgress"}
    facts = {"started": 1000.0, "ended": end.get("time"), "alive": 1013.0, "seed": 7, "train_instance_count": 2}
    facts |= {"hyperparameters": events[0]["hyperparameters"], "channels": {"train": "s3://bucket/train.manifest"}}
    facts |= {name: end[name] for name in ("status", "metrics", "best_epoch", "reason", "error") if name in end}
    facts |= {"versions": {"rayfm": "0.1.0"}, "details": {}, "ray_address": "127.0.0.1:1"}
    directory.write_status({"job_name": name, **facts, **status})
    return directory


def replayed(events):
    """Return events as they come out of metrics.jsonl."""
    from rayfm.storage import jsonable

    return [json.loads(json.dumps(jsonable(event))) for event in events]
