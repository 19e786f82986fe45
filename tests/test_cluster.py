"""The same command on a cluster that was started by somebody else, somewhere else."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rayfm.model import FactorizationMachine
from tests.conftest import free_port


@pytest.fixture(scope="module")
def address():
    """A head with 3 CPUs, its working directory at ``/``."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rfc", dir="/tmp", ignore_cleanup_errors=True) as folder:
        arguments = ["--head", "--block", f"--port={port}", "--num-cpus=3", "--include-dashboard=false"]
        head = subprocess.Popen(
            [Path(sys.executable).parent / "ray", "start", *arguments, f"--temp-dir={folder}"],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert head.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        for how in (signal.SIGTERM, signal.SIGKILL):  # all that it started is in its process group
            os.killpg(head.pid, how)
            time.sleep(2)
        head.wait(10)


def rayfm(folder, *arguments):
    command = [sys.executable, "-m", "rayfm", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)


def test_commands__work_with_relative_paths_on_a_cluster_started_elsewhere(address, tmp_path):
    (tmp_path / "rows.libsvm").write_text("".join(f"{i % 5} {i % 7}:1 {7 + i % 3}:1\n" for i in range(300)))
    task = ["--num-factors", "2", "--predictor-type", "regressor", "--index-base", "0", "--epochs", "2"]
    job = ["--instance-count", "2", "--output-path", "jobs", "--job-name", "one", "--address", address]
    trained = rayfm(tmp_path, "train", "rows.libsvm", *task, *job)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "jobs" / "one" / "job.json").read_text())["status"] == "Completed"
    predicted = rayfm(tmp_path, "predict", "jobs/one", "rows.libsvm", "--address", address)
    expected = FactorizationMachine.load(tmp_path / "jobs" / "one").linear
    assert len(predicted.stdout.splitlines()) == 300
    assert len(expected) == 10


def test_train__more_workers_than_the_cluster_has_cpus_is_refused_with_both_numbers(address, tmp_path):
    (tmp_path / "rows.libsvm").write_text("1 0:1\n")
    task = ["--num-factors", "2", "--predictor-type", "regressor", "--index-base", "0"]
    refused = rayfm(tmp_path, "train", "rows.libsvm", *task, "--instance-count", "4", "--address", address)
    assert refused.returncode == 1
    assert refused.stderr.startswith("rayfm: error: 4 workers need 4 CPUs, the cluster has 3.")


PROCESSES = {
    "fit": """
from rayfm.sagemaker import FactorizationMachines

rng = np.random.default_rng(0)
features = rng.integers(0, 2, (200, 8)).astype("float32")
estimator = FactorizationMachines(
    "arn:aws:iam::111122223333:role/any", 1, "local", num_factors=2, predictor_type="regressor", epochs=8000,
    output_path="jobs", data_location="records",
)
estimator.fit(estimator.record_set(features, features.sum(axis=1)), mini_batch_size=50, wait=False, job_name="two")
print(estimator.latest_training_job.describe()["TrainingJobStatus"])
""",
    "attach": """
from rayfm.sagemaker import FactorizationMachines

estimator = FactorizationMachines.attach("two")
print(estimator.hyperparameters())
print(estimator.latest_training_job.describe()["TrainingJobStatus"])
""",
    "deploy": """
from rayfm.sagemaker import FactorizationMachines

estimator = FactorizationMachines.attach("two", output_path="jobs")
predictor = estimator.deploy(1, "local", endpoint_name="ep")
scores = [r.label["score"].float32_tensor.values[0] for r in predictor.predict(np.eye(8, dtype="float32"))]
print(np.allclose(scores, estimator.model.predict(np.eye(8)), atol=1e-6))
""",
    "predict": """
from rayfm.sagemaker import FactorizationMachinesPredictor

predictor = FactorizationMachinesPredictor("ep")
print(len(predictor.predict(np.zeros(8, "float32"))))
predictor.delete_endpoint()
""",
}


def test_estimator__fit_attach_deploy_and_predict_each_in_a_process_of_its_own(address, tmp_path):
    environment = os.environ | {"RAY_ADDRESS": address, "RAYFM_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    said = {}
    for name, script in PROCESSES.items():
        command = [sys.executable, "-W", "error", "-c", "import numpy as np\n" + script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    assert said["fit"] == "InProgress\n"
    assert "#quality_metric: host=algo-1, epoch=0, train rmse <loss>=" in said["attach"]
    assert "Completed - Training job completed" in said["attach"]
    assert "'mini_batch_size': '50'" in said["attach"]
    assert "'feature_dim': '8'" in said["attach"]
    assert said["attach"].endswith("\nCompleted\n")
    assert said["deploy"].endswith("True\n")
    assert said["predict"] == "1\n"


LOSS_OF_A_NODE = """
import sys
from ray.cluster_utils import Cluster

size = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
node = cluster.add_node(**size)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="rayfm")
cluster.wait_for_nodes()
events = []


def watcher(event):
    events.append(event["event"])
    if is_disturbed and event["event"] == "epoch" and event["epoch"] == 0:
        cluster.remove_node(node, allow_graceful=False)


models = []
for is_disturbed in (False, True):
    result = rayfm.train(
        "rows.libsvm", options=rayfm.ReadOptions(index_base=0), train_instance_count=2, watcher=watcher,
        output_path=sys.argv[1] + str(is_disturbed), job_name="job",
        hyperparameters={
            "num_factors": 4, "predictor_type": "regressor", "epochs": 300, "mini_batch_size": 10, "shuffle": True,
            "seed": 1,
        },
    )
    models.append(result.model.factors.tobytes())
assert models[0] == models[1]
assert "restart" in events
print("the same bits")
ray.shutdown()
cluster.shutdown()
"""


def test_train__goes_on_to_the_same_bits_when_a_node_is_lost(tmp_path):
    """With the worker that was there, and the blocks."""
    (tmp_path / "rows.libsvm").write_text("".join(f"{i % 5} {i % 7}:1 {7 + i % 3}:1\n" for i in range(3000)))
    script = "import ray\nimport rayfm\n" + LOSS_OF_A_NODE
    sooner = {
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "2000",
    }  # seen after 3 to 12 s, not 15
    said = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env=os.environ | sooner,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "the same bits" in said.stdout
