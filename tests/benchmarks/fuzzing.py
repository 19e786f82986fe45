"""Mutated requests by the hundred thousand: ``python tests/benchmarks/fuzzing.py [--bodies N] [--http N] [--seed N]``.

Every answer must be a documented one and no 5xx, also not inside a ModelError; every 200 must have a finite score for
each row; the memory of the process must not grow. Bodies of each format go to a replica in this process; then a few
to an endpoint behind HAProxy, whose replica must be the same process at the end. The first fault ends the run; the
request is `mutated_request(media_type, seed, number)`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import SESSION, free_port  # noqa: E402, I001  the environment is set before Ray is imported

import ray  # noqa: E402
import requests  # noqa: E402

from rayfm.formats.instances import MEDIA_TYPES  # noqa: E402
from rayfm.serving import applications, endpoint  # noqa: E402
from tests.mutations import MODEL, NAME, InProcess, documented, fault, mutated_request  # noqa: E402

WARM_SHARE, MAX_GROWTH = 0.2, 0.05


class OverHttp:
    """Sends requests to an endpoint behind HAProxy."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url, requests.Session()

    async def __call__(self, request):
        """Return status, headers and body of the answer."""
        headers = {**dict.fromkeys(self.session.headers), **request.headers}  # of its own it sends none
        answer = self.session.post(self.url + request.path, data=request.body, headers=headers, timeout=60)
        return answer.status_code, answer.headers, answer.content


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


async def fuzz(title, send, pid, bodies, seed):
    """Send `bodies` of each format, print a line for each, and return whether the memory stayed."""
    paths, grown = documented(), []
    for media_type in MEDIA_TYPES:
        start, statuses, before = time.monotonic(), Counter(), 0.0
        for number in range(bodies):
            if number == int(WARM_SHARE * bodies):
                gc.collect()
                before = memory_mib(pid)
            request = mutated_request(media_type, seed, number)
            try:
                status, headers, content = await send(request)
                wrong = fault(request, status, headers, content, paths)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                sys.exit(
                    f"{title}: {wrong}\nseed {seed}, {media_type}, request {number}: POST {request.path} "
                    f"{request.headers}\n{request.body.hex()}"
                )
            statuses[status] += 1
        gc.collect()
        after = memory_mib(pid)
        grown.append(after > before * (1 + MAX_GROWTH))
        answers = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
        seconds = time.monotonic() - start
        print(
            f"{title:<11}{media_type:<31}{bodies:>8,}  {answers:<62}{seconds:>6.0f} s{before:>8.1f} -> {after:.1f} MiB",
            flush=True,
        )
    return not any(grown)


def replica_pid() -> int:
    """Return the process that answers for the endpoint."""
    return applications.applications()[NAME]["deployments"][applications.DEPLOYMENT]["replicas"][0]["pid"]


def over_http(bodies, seed, model_uri):
    """Fuzz a real endpoint; return whether its process lives on and its memory stayed."""
    os.environ["RAYFM_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
             logging_level="ERROR")  # fmt: skip
    try:
        endpoint.deploy(model_uri, NAME, at_root=True)
        pid = replica_pid()
        is_flat = asyncio.run(fuzz("HAProxy", OverHttp(endpoint.default_url()), pid, bodies, seed))
        print(f"replica: process {pid} before, {replica_pid()} after")
        return is_flat and replica_pid() == pid
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()


def main() -> None:
    """Fuzz in process, then over HTTP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000, help="of each format, in process")
    parser.add_argument("--http", type=int, default=5_000, help="of each format, through HAProxy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a failure of the server's own is seen by its status
    model_uri = str(Path(tempfile.mkdtemp(dir=SESSION.name)) / "model.safetensors")
    MODEL.save(model_uri)
    print(f"seed {options.seed}")
    print(f"{'sent by':<11}{'format':<33}bodies  {'answers by status':<61}seconds  resident memory")

    async def in_process():
        return await fuzz("in process", await InProcess.serving(model_uri), os.getpid(), options.bodies, options.seed)

    is_flat = not options.bodies or asyncio.run(in_process())
    is_flat &= not options.http or over_http(options.http, options.seed, model_uri)
    sys.exit(0 if is_flat else f"the memory grew by more than {MAX_GROWTH:.0%}, or the replica was replaced")


if __name__ == "__main__":
    main()
