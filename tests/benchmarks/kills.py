"""What random kills do to runs: ``python tests/benchmarks/kills.py [--minutes 10] [--kills 50]``.

Runs of two workers, one after the other, from a Parquet file. At random times a process of one is killed: a worker,
the parameter server, or a task that reads. Each run must end with the bits of one that nobody disturbed, and leave no
actor, no placement group and no file behind.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import SESSION, live_actors  # noqa: E402, I001  the environment is set before Ray is imported

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402
from ray.util import placement_group_table  # noqa: E402

import rayfm  # noqa: E402
from tests.benchmarks import workloads  # noqa: E402

RAYS_OWN = {"IDLE", "DashboardAgent", "RuntimeEnvAgent"}
FOLDER = Path(tempfile.mkdtemp(dir=SESSION.name))


def victims():
    """The processes of a run that work for its controller: {pid: what it does}."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            ours = SESSION.name.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        name = title.removeprefix("ray::").split("(")[0].split(".")[0].split(":")[0]
        is_controller = name == "RunController" or name.startswith(str(FOLDER))  # it is named as its job
        if ours and title.startswith("ray::") and not is_controller and name not in RAYS_OWN:
            found[int(folder.name)] = name
    return found


class Killer(threading.Thread):
    """Kills a process at random, `kills` times in all, about as often in any part of the time."""

    def __init__(self, seconds, kills):
        super().__init__(daemon=True)
        self._pause, self._left, self.killed = seconds / kills, kills, Counter()

    def run(self):
        while self._left:
            time.sleep(self._pause * random.uniform(0.5, 1.5))
            deadline = time.monotonic() + self._pause
            while not (there := victims()) and time.monotonic() < deadline:
                time.sleep(0.01)
            if there:
                pid = random.choice(list(there))
                os.kill(pid, signal.SIGKILL)
                self.killed[there[pid]] += 1
                self._left -= 1


def leftovers():
    """What a run has left behind, once Ray has had time to notice."""
    for _ in range(100):
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        left = [*(name for name in live_actors().values() if name != "RunController"), *groups]
        if not left:
            break
        time.sleep(0.1)
    return left + [path for path in (FOLDER / "out").rglob("*") if path.name.startswith(".") or "tmp" in path.name]


def train(path, feature_dim, seed):
    """Train once; returns the model and how often the run went on with new actors."""
    events = []
    values = {
        "num_factors": 8, "predictor_type": "binary_classifier", "epochs": 12, "feature_dim": feature_dim,
        "optimizer": ("adam", "adagrad", "ftrl")[seed % 3], "seed": seed, "shuffle": True,
    }  # fmt: skip
    result = rayfm.train(
        path, hyperparameters=values, train_instance_count=2, output_path=str(FOLDER / "out"), watcher=events.append
    )
    model = result.model
    return (model.bias, model.linear.copy(), model.factors.copy()), sum(e["event"] == "restart" for e in events)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    batch = workloads.make("clicks", 100_000)
    path = str(FOLDER / "rows.parquet")
    pq.write_table(batch.to_arrow(), path, row_group_size=10_000)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", namespace="rayfm")
    expected = {seed: train(path, batch.feature_dim, seed)[0] for seed in range(3)}
    killer = Killer(60 * arguments.minutes, arguments.kills)
    killer.start()
    runs = wrong = failed = restarts = 0
    left = []
    while killer.is_alive():
        seed = runs % 3
        runs += 1
        try:
            model, again = train(path, batch.feature_dim, seed)
            restarts += again
            wrong += not all(np.array_equal(one, other) for one, other in zip(model, expected[seed], strict=True))
        except rayfm.RayfmError as error:
            failed += 1
            print(f"failed: {error}", flush=True)
        left += leftovers()
        shutil.rmtree(FOLDER / "out")
        print(f"{runs} runs, {dict(killer.killed)} killed, {restarts} restarts, {wrong} wrong, {failed} failed, "
              f"{len(left)} left", flush=True)  # fmt: skip
    ray.shutdown()


if __name__ == "__main__":
    main()
