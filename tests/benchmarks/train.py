"""What a training run takes: ``python tests/benchmarks/train.py [--workload clicks|wide] [--rows N]``.

A run from files of each format, with one worker of one thread, one of two threads, and two workers, on a Ray that is
up: seconds in all, of reading, before the first epoch (which one worker trains while it is read: the seconds in all but
those of its kernels until it is over), of an epoch, and of the kernels alone for the same epochs; the
most memory of a worker, beside its parameters, states and rows, and of all processes together. With --peer, xLearn's
own command (``xlearn_train``, where it is installed) trains on the same rows in turn. To build it:
``pip download --no-deps --no-binary :all: xlearn==0.40a1``, unpack that, and in its folder ``compile``
``cmake -DCMAKE_POLICY_VERSION_MINIMUM=3.5 . && make xlearn_train``.

Memory is proportional set size, in which a page that several processes map counts once, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import SESSION, live_actors  # noqa: E402, I001  the environment is set before Ray is imported

import ray  # noqa: E402

import rayfm  # noqa: E402
from rayfm.kernels.tables import CODES, size_bytes  # noqa: E402
from tests.benchmarks import workloads  # noqa: E402
from tests.benchmarks.kernels import Contestants  # noqa: E402
from tests.benchmarks.readers import write_files  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(dir=SESSION.name))
WAYS = ((1, 1, False), (1, 2, False), (1, 2, True), (2, 1, False))
"""(workers, threads, racing)"""


def pss(pid):
    """Proportional set size of a process in bytes, 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) * 1024


def session_pids():
    """This process and all of its Ray."""
    mine = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if SESSION.name.encode() in (folder / "environ").read_bytes():
                mine.append(int(folder.name))
        except OSError:
            continue
    return mine


class Memory:
    """Samples memory until it is left."""

    def __enter__(self):
        self.worker = self.together = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _sample(self):
        while not self._end.wait(0.1):
            sizes = {pid: pss(pid) for pid in session_pids()}
            workers = [pid for pid, name in live_actors().items() if name == "Worker"]
            self.worker = max([self.worker, *(sizes.get(pid, 0) for pid in workers)])
            self.together = max(self.together, sum(sizes.values()))


def run(path, batch, arguments, workers, threads, racing):
    """Train once; return what it took, by name."""
    events = []
    values = {
        "num_factors": arguments.factors,
        "predictor_type": "binary_classifier",
        "epochs": arguments.epochs,
        "optimizer": arguments.optimizer,
        "threads": threads,
        "hogwild": racing,
        "feature_dim": batch.feature_dim,
    }
    with Memory() as memory:
        began = time.time()
        rayfm.train(
            str(path),
            hyperparameters=values,
            train_instance_count=workers,
            output_path=str(FOLDER / "out"),
            watcher=events.append,
        )
        seconds = time.time() - began
    by_name = {event["event"]: event for event in reversed(events)}
    epochs = [event["seconds"] for event in events if event["event"] == "epoch"]
    first = next(event for event in events if event["event"] == "epoch")
    shutil.rmtree(FOLDER / "out")
    return {
        "all": seconds,
        "read": by_name["read"]["seconds"],
        "to first epoch": first["time"] - first["seconds"] - began,
        "epoch": min(epochs),
        "epochs": sum(epochs),
        "worker": memory.worker,
        "together": memory.together,
    }


def xlearn(path, arguments, threads):
    """Seconds of an epoch of xLearn's AdaGrad, as it says itself."""
    command = ["xlearn_train", str(path), "-s", "1", "-p", "adagrad", "-k", str(arguments.factors), "-e", "4",
               "-nthread", str(threads), "--dis-es", "--no-norm"]  # fmt: skip
    user = {"USER": os.environ.get("USER", "nobody")}  # it fails without one
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | user).stdout
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    return min(float(seconds) for seconds in re.findall(r"\]\s+\d+\s+[\d.]+\s+([\d.]+)\s*$", plain, re.M))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="clicks")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--factors", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--optimizer", choices=CODES, default="adam")
    parser.add_argument("--formats", nargs="+", default=["parquet", "recordio", "libsvm"])
    parser.add_argument("--ways", nargs="+", type=int, default=list(range(len(WAYS))), help=f"which of {WAYS}")
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    load = workloads.WORKLOADS[arguments.workload]
    arguments.factors = arguments.factors or load.num_factors
    batch = workloads.make(arguments.workload, arguments.rows)
    paths = write_files(batch, FOLDER)
    contestants = Contestants(batch, arguments.factors, 1000)
    table = size_bytes(CODES[arguments.optimizer], batch.feature_dim, arguments.factors)
    print(
        f"{batch.num_rows:,} rows, {batch.num_entries:,} nonzeros, k = {arguments.factors}, {arguments.optimizer}: "
        f"parameters and states {table / 2**30:.2f} GiB, rows {batch.size_bytes / 2**30:.2f} GiB",
        flush=True,
    )
    kernels = {}
    for threads, racing in {(threads, racing) for _, threads, racing in WAYS}:
        train = contestants.training(arguments.optimizer, threads, racing=racing)
        train()
        began = time.perf_counter()
        train()
        kernels[threads, racing] = time.perf_counter() - began
    del contestants, train
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", namespace="rayfm")
    print(
        f"{'':36}{'all':>8}{'read':>8}{'before':>8}{'epoch':>8}{'kernel':>8}{'all/k':>8}{'worker':>9}{'/need':>7}{'together':>9}"
    )
    for name in arguments.formats:
        for index in arguments.ways:
            workers, threads, racing = WAYS[index]
            took = run(paths[name], batch, arguments, workers, threads, racing)
            alone = kernels[threads, racing] / workers
            need = table + batch.size_bytes / workers
            label = f"{name}, {workers} x {threads}{' racing' if racing else ''}"
            print(
                f"{label:36}{took['all']:8.2f}{took['read']:8.2f}{took['to first epoch']:8.2f}{took['epoch']:8.2f}"
                f"{alone:8.2f}{took['all'] / alone / arguments.epochs:8.2f}{took['worker'] / 2**30:9.2f}"
                f"{took['worker'] / need:7.2f}{took['together'] / 2**30:9.2f}   load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    if arguments.peer:
        for threads in (1, 2):
            theirs = xlearn(paths["libsvm"], arguments, threads)
            print(
                f"xLearn, {threads} threads: {theirs:.2f} s an epoch, ours / its {kernels[threads, False] / theirs:.2f}"
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
