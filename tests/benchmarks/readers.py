"""How fast files are read: ``python tests/benchmarks/readers.py [--workload clicks|wide] [--rows N]``.

The same rows as RecordIO, Parquet and libsvm text, read by `rayfm.reading.read` in this process, beside what one would
use instead: a plain loop over google.protobuf, pyarrow's own read, scikit-learn's `load_svmlight_file`. Decoding and
writing RecordIO in memory is timed beside protobuf too. They take turns; the median counts. What matters are the
ratios.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pyarrow.parquet as pq  # noqa: E402
from sklearn.datasets import load_svmlight_file  # noqa: E402

from rayfm import reading  # noqa: E402
from rayfm.formats import libsvm, recordio  # noqa: E402
from rayfm.formats.record_pb2 import Record  # noqa: E402
from rayfm.formats.recordio_frames import read_frames  # noqa: E402
from tests.benchmarks import workloads  # noqa: E402


def protobuf_loop(file):
    """Read every record as one would by hand: lists of keys and values, and a label."""
    rows, record = [], Record()
    for _, payload in read_frames(file):
        record.ParseFromString(payload)
        tensor = record.features["values"].float32_tensor
        rows.append((tensor.keys[:], tensor.values[:], record.label["values"].float32_tensor.values[0]))
    return rows


def protobuf_writing(batch):
    """Write every record as one would by hand."""
    file, record = io.BytesIO(), Record()
    for row in range(batch.num_rows):
        entries = slice(int(batch.indptr[row]), int(batch.indptr[row + 1]))
        record.Clear()
        tensor = record.features["values"].float32_tensor
        tensor.keys.extend(batch.keys[entries].tolist())
        tensor.values.extend(batch.values[entries].tolist())
        tensor.shape.append(batch.feature_dim)
        record.label["values"].float32_tensor.values.append(float(batch.labels[row]))
        recordio.write_frame(file, record.SerializeToString())
    return file


def write_files(batch, folder):
    endings = {"recordio": "pbr", "parquet": "parquet", "libsvm": "svm"}
    paths = {name: folder / f"rows.{ending}" for name, ending in endings.items()}
    with open(paths["recordio"], "wb") as file:
        recordio.write(file, batch)
    with open(paths["libsvm"], "wb") as file:
        libsvm.write(file, batch)
    pq.write_table(batch.to_arrow(), paths["parquet"])
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="clicks")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    batch = workloads.make(arguments.workload, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(path) for name, path in write_files(batch, Path(folder)).items()}
        pairs = {
            "recordio": ("protobuf loop", lambda: protobuf_loop(open(paths["recordio"], "rb"))),
            "parquet": ("pyarrow read", lambda: pq.read_table(paths["parquet"], use_threads=False)),
            "libsvm": (
                "load_svmlight_file",
                lambda: load_svmlight_file(paths["libsvm"], n_features=batch.feature_dim, zero_based=True),
            ),
        }
        contestants = {}
        for name, (other, function) in pairs.items():
            options = reading.ReadOptions(index_base=0)
            contestants[name] = lambda path=paths[name], options=options: reading.read(path, options)
            contestants[other] = function
        body = Path(paths["recordio"]).read_bytes()
        contestants["recordio, in memory"] = lambda: recordio.decode(body)
        contestants["protobuf, in memory"] = lambda: protobuf_loop(io.BytesIO(body))
        contestants["recordio, writing"] = lambda: recordio.write(io.BytesIO(), batch)
        contestants["protobuf, writing"] = lambda: protobuf_writing(batch)
        times = {name: [] for name in contestants}
        for turn in range(arguments.turns + 1):
            for name, function in contestants.items():
                began = time.perf_counter()
                function()
                if turn:
                    times[name].append(time.perf_counter() - began)
        sizes = {name: os.path.getsize(path) for name, path in paths.items()}
    print(f"{batch.num_rows:,} rows, {batch.num_entries:,} nonzeros, load average {os.getloadavg()[0]:.1f}\n")
    print(f"{'':22}{'records/s':>14}{'MB/s':>9}{'beside':>24}{'time / its':>12}")
    rows = [(name, other, sizes[name]) for name, (other, _) in pairs.items()]
    rows += [(f"recordio, {what}", f"protobuf, {what}", sizes["recordio"]) for what in ("in memory", "writing")]
    for name, other, size in rows:
        mine, theirs = statistics.median(times[name]), statistics.median(times[other])
        print(f"{name:22}{batch.num_rows / mine:14,.0f}{size / mine / 1e6:9.0f}{other:>24}{mine / theirs:12.4f}")


if __name__ == "__main__":
    main()
