"""What an endpoint costs and withstands: ``python tests/benchmarks/serving.py [--repeats N] [MEASURE]...``.

latency   p50 of one row of 39 nonzeros, and requests/s of 16 clients, beside empty applications of the same Serve
rows      rows/s of one RecordIO request of 10,000 sparse rows, beside the scoring kernel alone
update    a new model every few seconds under 30 s of load of 16 clients: how many requests failed
kill      SIGKILL of one of two replicas under load: how many requests failed, when both were there again
scale     32 clients at an endpoint of one to two replicas: when the second was there
soak      10 minutes of load: the memory of the endpoint's processes

All of it on the loopback interface, on a Ray of its own; the client is wrk (Debian's package of that name). What
matters are the ratios inside one run, of runs that take turns; the load of the machine is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import SESSION, free_port  # noqa: E402, I001  the environment is set before Ray is imported

import numpy as np  # noqa: E402
import ray  # noqa: E402
import requests  # noqa: E402
from starlette.responses import Response  # noqa: E402

from rayfm.batch import SparseBatch  # noqa: E402
from rayfm.formats import recordio  # noqa: E402
from rayfm.model import FactorizationMachine  # noqa: E402
from rayfm.serving import applications, endpoint  # noqa: E402

FEATURE_DIM, NUM_FACTORS, NONZEROS = 1_000_000, 16, 39
JSON, RECORDIO = "application/json", "application/x-recordio-protobuf"

FOLDER = Path(tempfile.mkdtemp(dir=SESSION.name))


class Empty:
    """An application that does nothing: what any application of this Serve costs."""

    async def __call__(self, request):
        """Answer."""
        return Response(b'{"predictions": [{"score": 0.5}]}', headers={"Content-Type": JSON})


def save_model(seed):
    """Write a model and return its path."""
    rng = np.random.default_rng(seed)
    linear = 0.1 * rng.standard_normal(FEATURE_DIM, np.float32)
    factors = 0.1 * rng.standard_normal((FEATURE_DIM, NUM_FACTORS), np.float32)
    path = FOLDER / f"model-{seed}.safetensors"
    FactorizationMachine(0.1, linear, factors, "binary_classifier").save(path)
    return str(path)


def rows(count, seed=0):
    """Return sparse rows."""
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.integers(0, FEATURE_DIM, (count, NONZEROS)), axis=1).ravel()
    values = rng.random(count * NONZEROS, np.float32)
    return SparseBatch.from_csr(np.arange(count + 1) * NONZEROS, keys, values, feature_dim=FEATURE_DIM)


def json_body(batch):
    """Return a request with the rows."""
    row = {"keys": batch.keys.tolist(), "shape": [FEATURE_DIM], "values": batch.values.tolist()}
    return json.dumps({"instances": [{"data": {"features": row}}]})


@contextmanager
def cluster():
    """Start a Ray with more logical CPUs than there are, and end it."""
    os.environ["RAYFM_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
    ray.init(num_cpus=6, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False,
             logging_level="ERROR")  # fmt: skip
    from ray import serve

    try:
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


def wrk(url, clients, seconds, body):
    """Load a URL; return requests/s, p50 in ms, all requests and the failed ones."""
    script = FOLDER / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{JSON}"\nwrk.body = {json.dumps(body)}\n'
        "done = function(summary, latency) local e = summary.errors\n"
        'io.write(string.format("FIGURES %d %d %d %d\\n", summary.requests, latency:percentile(50), summary.duration,'
        " e.connect + e.read + e.write + e.timeout + e.status)) end\n"
    )
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests_, p50_us, duration_us, failed = map(int, re.search(r"FIGURES (\d+) (\d+) (\d+) (\d+)", said).groups())
    return {"rate": requests_ * 1e6 / duration_us, "p50_ms": p50_us / 1000, "requests": requests_, "failed": failed}


def in_background(*arguments):
    """Start `wrk`; a function that waits for its figures."""
    found = {}
    thread = threading.Thread(target=lambda: found.update(wrk(*arguments)))
    thread.start()

    def wait():
        thread.join()
        return found

    return wait


def tell(name, figure, note=""):
    """Print a line of the table."""
    load = os.getloadavg()[0]
    print(f"{name:<66}{figure:>12}   {note}{'   ' if note else ''}(load {load:.1f})", flush=True)


def latency(serve, repeats=25):
    """Measure one row, taking turns with an empty application, and with one below /endpoints/.

    HAProxy spares what is there some of Serve's work (rayfm/serving/haproxy.py): beside the first stands what a user of
    this Serve would have otherwise, beside the second what reading, scoring and answering cost.
    """
    ours = endpoint.deploy(save_model(0), "fm").url + "/invocations"
    empty = {"an empty application": "/empty", "an empty one that is spared the same": "/endpoints/empty"}
    deployment = serve.deployment(Empty, name="empty", max_ongoing_requests=5000, ray_actor_options={"num_cpus": 1})
    quiet = {"logging_config": {"enable_access_log": False}}
    names = [route.replace("/", "-")[1:] for route in empty.values()]
    serve.run_many(
        [
            serve.RunTarget(deployment.bind(), name, route, **quiet)
            for name, route in zip(names, empty.values(), strict=True)
        ]
    )
    theirs = {what: endpoint.default_url() + route for what, route in empty.items()}
    body = json_body(rows(1))
    for clients, measure, name in ((1, "p50_ms", "p50 of one row"), (16, "rate", "requests/s of 16 clients")):
        seen = {url: [] for url in (ours, *theirs.values())}
        for repeat in range(repeats):  # short ones: the machine's moods last longer
            for url in list(seen)[:: -1 if repeat % 2 else 1]:
                found = wrk(url, clients, 2, body)
                assert not found["failed"]
                seen[url].append(found[measure])
        for what, url in theirs.items():
            ratios = [one / other for one, other in zip(seen[ours], seen[url], strict=True)]
            note = f"{statistics.median(seen[ours]):.3g} / {statistics.median(seen[url]):.3g}, ratios {min(ratios):.2f}"
            tell(f"{name} / of {what}", f"{statistics.median(ratios):.3f}", f"{note} to {max(ratios):.2f}")
    for other in names:
        serve.delete(other)
    endpoint.delete("fm")


def rows_per_second(serve, repeats=15):
    """Measure one large request beside the kernel."""
    uri = save_model(0)
    url = endpoint.deploy(uri, "fm").url + "/invocations"
    model, batch = FactorizationMachine.load(uri), rows(10_000)
    path = FOLDER / "rows.pbr"
    with open(path, "wb") as file:
        recordio.write(file, batch)
    body = path.read_bytes()
    model.raw_scores_unchecked(batch)
    whole, kernel = [], []
    with requests.Session() as session:
        for _ in range(repeats):
            start = time.perf_counter()
            model.raw_scores_unchecked(batch)
            kernel.append(time.perf_counter() - start)
            start = time.perf_counter()
            answer = session.post(url, data=body, headers={"Content-Type": RECORDIO, "Accept": RECORDIO})
            whole.append(time.perf_counter() - start)
            answer.raise_for_status()
    ours, theirs = statistics.median(whole), statistics.median(kernel)
    note = f"{10_000 / ours:,.0f} / {10_000 / theirs:,.0f} rows/s, {len(body) / 1e6:.1f} MB"
    tell("rows/s of a request of 10,000 rows / of the kernel", f"{theirs / ours:.3f}", note)
    endpoint.delete("fm")


def update(serve):
    """Change the model under load."""
    uris = [save_model(seed) for seed in (0, 1)]
    url = endpoint.deploy(uris[0], "fm").url + "/invocations"
    wait = in_background(url, 16, 30, json_body(rows(1)))
    ends, updates = time.monotonic() + 27, 0
    while time.monotonic() < ends:
        updates += 1
        endpoint.deploy(uris[updates % 2], "fm")
    found = wait()
    tell(
        "failed requests while the model was updated",
        found["failed"],
        f"{updates} updates, {found['requests']:,} requests",
    )
    endpoint.delete("fm")


def replicas(name):
    """Return the processes of an endpoint that are running."""
    found = applications.applications()[name]["deployments"][applications.DEPLOYMENT]["replicas"]
    return [replica["pid"] for replica in found if replica["state"] == "RUNNING"]


def kill(serve):
    """Kill one of two replicas under load."""
    url = endpoint.deploy(save_model(0), "fm", replicas=2).url + "/invocations"
    wait = in_background(url, 16, 30, json_body(rows(1)))
    time.sleep(5)
    victim = replicas("fm")[0]
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    while victim in (now := replicas("fm")) or len(now) < 2:
        time.sleep(0.1)
    whole_s = time.monotonic() - start
    found = wait()
    share = f"{100 * found['failed'] / found['requests']:.4f} %"
    tell("failed requests when a replica was killed", share, f"{found['failed']} of {found['requests']:,}")
    tell("seconds until both replicas were there again", f"{whole_s:.1f}")
    endpoint.delete("fm")


def scale(serve):
    """Load one of one to two replicas until the other is there."""
    url = endpoint.deploy(save_model(0), "fm", max_replicas=2).url + "/invocations"
    start = time.monotonic()
    wait = in_background(url, 32, 60, json_body(rows(1)))
    while len(replicas("fm")) < 2 and time.monotonic() < start + 60:
        time.sleep(0.1)
    tell("seconds of load until there was a second replica", f"{time.monotonic() - start:.1f}")
    tell("failed requests meanwhile and after", wait()["failed"])
    endpoint.delete("fm")


def memory_mib(pids):
    """Return the resident memory of processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def soak(serve, minutes=10):
    """Load for a long time and watch the memory."""
    url = endpoint.deploy(save_model(0), "fm").url + "/invocations"
    proxies = subprocess.run(["pgrep", "-f", "ray::HAProxyManager"], capture_output=True, text=True).stdout.split()
    parts = {"replica": replicas("fm"), "proxy": [int(pid) for pid in proxies]}
    body, seen = json_body(rows(1)), {name: [] for name in parts}
    wrk(url, 16, 20, body)  # warm: the allocator has what it needs
    failed = total = 0
    for _ in range(minutes * 6):
        found = wrk(url, 16, 10, body)
        failed, total = failed + found["failed"], total + found["requests"]
        for name, pids in parts.items():
            seen[name].append(memory_mib(pids))
    for name, sizes in seen.items():
        growth = 100 * (max(sizes) / sizes[0] - 1)
        tell(
            f"growth of the {name}'s memory in {minutes} min",
            f"{growth:.2f} %",
            f"{sizes[0]:.0f} to {max(sizes):.0f} MiB",
        )
    tell("failed requests", failed, f"of {total:,}")
    endpoint.delete("fm")


MEASURES = {"latency": latency, "rows": rows_per_second, "update": update, "kill": kill, "scale": scale, "soak": soak}
REPEATED = ("latency", "rows")


def main():
    """Run the measures that are named, or all but the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], help="all but soak when left out")
    parser.add_argument("--repeats", type=int, help="of latency and rows (25 and 15 when left out)")
    given = parser.parse_args()
    wanted = given.measures or [name for name in MEASURES if name != "soak"]
    if shutil.which("wrk") is None:
        sys.exit("wrk must be installed: apt-get install wrk.")
    with cluster() as serve:
        for name in wanted:
            repeats = {"repeats": given.repeats} if given.repeats and name in REPEATED else {}
            MEASURES[name](serve, **repeats)


if __name__ == "__main__":
    main()
