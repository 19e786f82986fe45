"""The command line: what it takes, prints and exits with."""

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rayfm import __version__, reading
from rayfm.cli import cli, data, options
from rayfm.cli.options import byte_size
from rayfm.errors import StorageError, WorkerError
from rayfm.formats import recordio, scores
from rayfm.hyperparameters import HYPERPARAMETERS
from rayfm.model import FactorizationMachine

COMMANDS = ("train", "predict", "transform", "evaluate", "inspect", "export", "check", "jobs", "report")
REGRESSOR = ["--num-factors", "2", "--predictor-type", "regressor"]
ROOT = Path(__file__).parents[1]


def invoke(*args, **more):
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="rayfm", **more)


@pytest.fixture(scope="module")
def rows():
    """Users, items and labels that two factors explain."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 600), rng.integers(20, 50, 600)
    return users, items, (users % 3 + items % 5) / 2


@pytest.fixture(scope="module")
def libsvm(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.libsvm"
    path.write_text("".join(f"{label} {user}:1 {item}:1\n" for user, item, label in zip(*rows, strict=True)))
    return path


@pytest.fixture(scope="module")
def parquet(rows, tmp_path_factory):
    users, items, labels = rows
    keys = pa.array(np.stack([users, items], axis=1).tolist(), pa.list_(pa.uint32()))
    values = pa.array([[1.0, 1.0]] * len(users), pa.list_(pa.float32()))
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(pa.table({"features": keys, "x": values, "rating": labels}), path)
    return path


@pytest.fixture(scope="module")
def pbr(rows, tmp_path_factory):
    from rayfm.batch import SparseBatch

    users, items, labels = rows
    indptr = np.arange(0, 2 * len(users) + 1, 2)
    keys = np.stack([users, items], axis=1).ravel().astype(np.uint32)
    batch = SparseBatch(indptr, keys, np.ones(len(keys), np.float32), labels.astype(np.float32), feature_dim=50)
    path = tmp_path_factory.mktemp("data") / "rows.pbr"
    with path.open("wb") as file:
        recordio.write(file, batch)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file of known numbers."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    linear = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
    factors = np.array([[3, 4], [0, 0], [1, 0], [0, 2]], np.float32)
    facts = {"index_base": 1, "seed": 7}
    FactorizationMachine(0.25, linear, factors, "regressor", {"epochs": 3}, {"train:rmse": float("nan")}, facts).save(
        path
    )
    return path


def test_help__is_there_for_every_command_with_examples():
    overview = invoke("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", overview, re.M)
        text = invoke(name, "--help").stdout
        assert text.startswith(f"Usage: rayfm {name} ")
        assert text.count("  # ") >= 2 and f"  rayfm {name} " in text
        assert text.index("Examples:") < text.index("Options:")


def test_rayfm__alone_shows_its_help():
    result = invoke()
    assert (result.exit_code, result.stdout) == (0, invoke("--help").stdout)


def test_version__is_that_of_the_package():
    assert invoke("--version").stdout == f"rayfm {__version__}\n"


def test_train__has_an_option_for_every_hyperparameter():
    text = invoke("train", "--help").stdout
    for name, row in HYPERPARAMETERS.items():
        assert f"  --{name.replace('_', '-')} " in text
        assert " ".join(row.meaning.split()) in " ".join(text.split())
    assert "0.1 (adam), 0.05 (adagrad, ftrl, rowwise_adagrad)" in " ".join(text.split())
    assert "[binary_classifier|regressor]" in text


def test_train__groups_its_options():
    text = invoke("train", "--help").stdout
    places = [text.index(f"\n{heading}:\n") for heading in (*options.HEADINGS, "Data", "Reading", "Options")]
    assert places == sorted(places)


def test_formats__are_those_that_are_read():
    assert options.FORMATS == reading.FORMATS
    assert tuple(scores.CONTENT_TYPES) == data.CONTENT_TYPES


def test_byte_size__understands_units():
    sizes = [byte_size(text) for text in ("100", "2k", "500MB", "4GiB", "1.5 Ti")]
    assert sizes == [100, 2000, 500 * 10**6, 4 * 2**30, 3 * 2**39]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "x", *REGRESSOR, "--epochs", "0"],
         "Invalid hyperparameter value 0 for epochs. Expecting: An integer greater than 0"),
        (["train", "x", *REGRESSOR, "--epochs", "ten"],
         "invalid literal for int() with base 10: 'ten'\nThe value 'ten' was given for the hyperparameter epochs."),
        (["train", "x", "--num-factors", "2", "--predictor-type", "ranker"],
         'Invalid hyperparameter value ranker for predictor_type. Expecting: Value "binary_classifier" or "regressor"'),
        (["train", "x", "--num-factors", "2"],
         'predictor_type must be given. Expecting: Value "binary_classifier" or "regressor"'),
        (["train", "x", *REGRESSOR, "--instance-count", "0"], "train_instance_count must be an integer >= 1, got 0."),
        (["train", "x", *REGRESSOR, "--early-stopping-patience", "2"], "early_stopping_patience needs a validation"),
        (["train", "x", *REGRESSOR, "--worker-memory", "lots"], "must be a size such as 500MB or 4GiB, got 'lots'."),
        (["train", "x", "--hyperparameters", "/nowhere.json"], "'/nowhere.json' does not exist."),
        (["check", "x", "--predictor-type", "ranker"], "Invalid hyperparameter value ranker for predictor_type."),
        (["train"], "Missing argument 'TRAIN...'"),
        (["train", "x", "--num-factor", "2"], "--num-factors"),
        (["trian", "x"], "No such command 'trian'. Did you mean 'train'?"),
        (["frobnicate"], "No such command 'frobnicate'. There are train, predict, transform, evaluate, inspect,"),
    ],
)  # fmt: skip
def test_wrong_usage__exits_with_2_and_says_why(args, message):
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("rayfm: error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_failure__exits_with_1_in_one_line(ray_cluster):
    result = invoke("train", "/nowhere/rows.libsvm", *REGRESSOR)
    assert result.exit_code == 1
    assert re.fullmatch(r"rayfm: error: .*/nowhere/rows\.libsvm.*\n", result.stderr)


def test_failure__names_the_bad_record(ray_cluster, tmp_path):
    path = tmp_path / "bad.libsvm"
    path.write_text("1 1:1\n0 2:nan\n")
    result = invoke("train", path, *REGRESSOR, "--output-path", tmp_path / "out", "--job-name", "bad")
    assert result.exit_code == 1
    assert re.fullmatch(rf"rayfm: error: .*{re.escape(str(path))}:2: .*\n", result.stderr)
    assert "Training job failed" in result.stdout
    assert not list(tmp_path.rglob("*.safetensors"))


def raising(error):
    def load(uri):
        raise error

    return load


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug__shows_the_traceback(place, monkeypatch):
    monkeypatch.setattr(FactorizationMachine, "load", raising(WorkerError("boom")))
    args = {
        "before": ["--debug", "inspect", "x"],
        "after": ["inspect", "x", "--debug"],
        "environment": ["inspect", "x"],
    }
    result = invoke(*args[place], env={"RAYFM_DEBUG": "1" if place == "environment" else "0"})
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("rayfm: error: boom\n")


def test_failure__shortens_a_remote_traceback_and_keeps_notes(monkeypatch):
    error = WorkerError("round 3 failed on rank 1: RayTaskError:\n  File x\n    line\nValueError: boom")
    error.add_note("rank 1 ran on 10.0.0.7")
    monkeypatch.setattr(FactorizationMachine, "load", raising(error))
    assert invoke("inspect", "x").stderr == (
        "rayfm: error: round 3 failed on rank 1: RayTaskError: … ValueError: boom (RAYFM_DEBUG=1 shows all of it)\n"
        "rank 1 ran on 10.0.0.7\n"
    )


def test_failure__a_bug_is_called_one(monkeypatch):
    monkeypatch.setattr(FactorizationMachine, "load", raising(KeyError("w")))
    result = invoke("inspect", "x")
    assert result.exit_code == 1
    assert result.stderr == "rayfm: error: KeyError: 'w'. This should not happen; RAYFM_DEBUG=1 shows where it did.\n"


def test_interrupt__exits_with_130(monkeypatch):
    monkeypatch.setattr(FactorizationMachine, "load", raising(KeyboardInterrupt()))
    result = invoke("inspect", "x")
    assert (result.exit_code, result.stderr.strip()) == (130, "rayfm: interrupted.")


def test_inspect__lists_facts_and_the_heaviest_features(model):
    text = invoke("inspect", model, "--top", "2").stdout
    assert re.search(r"^feature_dim +4$", text, re.M)
    assert re.search(r"^bias +0\.25$", text, re.M)
    assert re.search(r"^ +1 +-2 +0 +5$", text, re.M)
    assert re.search(r"^ +3 +1 +3 +2$", text, re.M)
    assert "add 1 to find them there" in text


def test_inspect__json_is_strict(model):
    found = json.loads(invoke("inspect", model, "--json", "--top", "9").stdout, parse_constant=pytest.fail)
    assert (found["feature_dim"], found["num_factors"], found["size_bytes"]) == (4, 2, 4 * 13)
    assert found["metrics"] == {"train:rmse": None}
    assert found["hyperparameters"] == {"epochs": 3}
    assert [one["feature"] for one in found["largest_linear"]] == [1, 3, 0, 2]
    assert [one["value"] for one in found["largest_factors"]] == [5.0, 2.0, 1.0, 0.0]


def test_inspect__a_broken_file_exits_with_1(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a model")
    result = invoke("inspect", path)
    assert result.exit_code == 1
    assert re.fullmatch(r"rayfm: error: .*model\.safetensors.*\n", result.stderr)


def test_train__writes_a_model_that_predicts_and_can_be_measured(ray_cluster, libsvm, tmp_path):
    arguments = [libsvm, *REGRESSOR, "--epochs", "3", "--mini-batch-size", "50", "--seed", "1", "--shuffle"]
    result = invoke("train", *arguments, "--validation", libsvm, "--output-path", tmp_path, "--job-name", "first")
    assert result.exit_code == 0, result.output
    assert f"model: {tmp_path}/first/model.safetensors" in result.stdout
    trained = FactorizationMachine.load(tmp_path / "first")
    assert (trained.hyperparameters["seed"], trained.hyperparameters["shuffle"]) == (1, True)

    scores = tmp_path / "scores.txt"
    result = invoke("predict", tmp_path / "first", libsvm, "--output", scores)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert "600 rows scored" in result.stderr
    assert len(scores.read_text().splitlines()) == 600

    measured = json.loads(invoke("evaluate", tmp_path / "first", libsvm, "--json").stdout)
    assert measured["rmse"] == pytest.approx(trained.metrics["validation:rmse"], rel=1e-6)
    assert re.search(rf"^rmse +{measured['rmse']:.6g}$", invoke("evaluate", tmp_path / "first", libsvm).stdout, re.M)


def test_predict__writes_to_standard_output(ray_cluster, libsvm, tmp_path):
    FactorizationMachine(0.25, np.zeros(50, np.float32), np.zeros((50, 1), np.float32)).save(tmp_path / "m.safetensors")
    result = invoke("predict", tmp_path / "m.safetensors", libsvm)
    assert result.exit_code == 0, result.output
    assert {json.loads(line)["score"] for line in result.stdout.splitlines()} == {0.25}
    assert result.stdout.count("\n") == 600


def test_transform__writes_a_file_for_each_with_columns_that_are_kept(ray_cluster, parquet, libsvm, tmp_path):
    FactorizationMachine(0.25, np.zeros(50, np.float32), np.zeros((50, 1), np.float32)).save(tmp_path / "m.safetensors")
    layout = ["--keys-column", "features", "--values-column", "x", "--label-column", "rating"]
    output = ["--output-path", tmp_path / "out", "--keep-columns", "label, rating"]
    result = invoke("transform", tmp_path / "m.safetensors", parquet, *output, *layout)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert re.fullmatch(rf"600 rows of 1 files scored in [\d.]+ s: {tmp_path}/out\n", result.stderr)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.parquet.out").read_text().splitlines()]
    assert [row["label"] for row in rows] == pytest.approx([row["rating"] for row in rows])
    assert {row["score"] for row in rows} == {0.25}
    result = invoke("transform", tmp_path / "m.safetensors", libsvm, *output)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "rows.libsvm: columns ['rating'] cannot be kept" in result.stderr


def test_train__reads_parquet_columns_as_told(ray_cluster, parquet, tmp_path):
    columns = ["--keys-column", "features", "--values-column", "x", "--label-column", "rating"]
    result = invoke("train", parquet, *REGRESSOR, *columns, "--output-path", tmp_path, "--job-name", "p", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert FactorizationMachine.load(tmp_path / "p").feature_dim == 50


def test_train__a_hyperparameter_file_counts_less_than_the_command_line(ray_cluster, pbr, tmp_path):
    file = tmp_path / "hyperparameters.json"
    given = {"num_factors": "3", "predictor_type": "regressor", "epochs": "9", "mini_batch_size": "100"}
    file.write_text(json.dumps(given))
    result = invoke(
        "train", pbr, "--hyperparameters", file, "--epochs", "1", "--train-instance-count", "2",
        "--worker-memory", "1GiB", "--format", "recordio", "--output-path", tmp_path, "--job-name", "f",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    trained = FactorizationMachine.load(tmp_path / "f")
    assert (trained.num_factors, trained.feature_dim, trained.facts["workers"]) == (3, 50, 2)
    assert (trained.hyperparameters["epochs"], trained.hyperparameters["mini_batch_size"]) == (1, 100)


@pytest.mark.parametrize("text", ["[1]", "{", '{"num_factor": "3"}'])
def test_train__refuses_a_bad_hyperparameter_file(text, tmp_path):
    file = tmp_path / "hyperparameters.json"
    file.write_text(text)
    result = invoke("train", "x", "--hyperparameters", file)
    assert result.exit_code == 2
    assert "must be a JSON object" in result.stderr or "Did you mean num_factors?" in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("rayfm.training.doctor") is None, reason="being written")
def test_check__tells_good_data_from_bad(ray_cluster, libsvm, tmp_path):
    good = invoke("check", libsvm, "--predictor-type", "regressor")
    assert good.exit_code == 0, good.output
    bad = invoke("check", libsvm, "--predictor-type", "binary_classifier", "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout, parse_constant=pytest.fail)
    assert invoke("check", libsvm, "--feature-dim", "10").exit_code == 1


HEAVY = {"ray", "numba", "pyarrow", "numpy", "scipy", "pandas", "rich"}


@pytest.mark.parametrize(
    "statement",
    [
        "import rayfm",
        "from rayfm.cli import cli; cli.main(['--help'], standalone_mode=False)",
        "from rayfm.cli import cli; cli.main(['train', '--help'], standalone_mode=False)",
    ],
)
def test_help__imports_nothing_heavy(statement):
    program = f"import sys\n{statement}\nprint(sorted({HEAVY} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def start(*args, address="", **more):
    """Start ``python -m rayfm`` as a process group of its own, with an embedded Ray unless an address is given."""
    command = [sys.executable, "-m", "rayfm", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    return subprocess.Popen(command, text=True, start_new_session=True, env=environment, **more)


@pytest.fixture
def address(ray_cluster):
    """That of the session's Ray."""
    from rayfm.training import cluster

    return cluster.address()


def processes_of(session_id):
    """The processes of a session that have not ended, with their names."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == session_id and state != "Z":
            found[int(path.parent.name)] = name
    return found


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


REGEXES = {
    "test:rmse": r"#quality_metric: host=\S+, test rmse <loss>=(\S+)",
    "train:rmse:epoch": r"#quality_metric: host=\S+, epoch=\S+, train rmse <loss>=(\S+)",
    "train:rmse": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train rmse <loss>=(\S+)",
    "train:progress": r"#progress_metric: host=\S+, completed (\S+) %",
    "train:throughput": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
}
"""Those with which SageMaker reads the container's log."""


def test_process__log_of_a_run_is_read_by_sagemakers_regexes(libsvm, tmp_path, address):
    log, errors = tmp_path / "log", tmp_path / "errors"
    job = ["--output-path", tmp_path, "--job-name", "first"]
    arguments = [libsvm, "--test", libsvm, *REGRESSOR, "--epochs", "2", "--mini-batch-size", "200", *job]
    with log.open("w") as out, errors.open("w") as err:
        process = start("train", *arguments, address=address, stdout=out, stderr=err)
        assert process.wait(120) == 0, errors.read_text()
    text = log.read_text()
    found = {name: [float(value) for value in re.findall(regex, text)] for name, regex in REGEXES.items()}
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(REGEXES, 2) | {"test:rmse": 1}
    assert found["train:progress"] == [50.0, 100.0]
    metrics = FactorizationMachine.load(tmp_path / "first").metrics
    assert found["test:rmse"] == [metrics["test:rmse"]]
    assert found["train:rmse:epoch"][-1] == metrics["train:rmse"]
    own = re.compile(
        r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d [A-Z]+ \d+\] |#metrics \{|model: |its epoch: 2 of 2|  \w+:\w+  "
    )
    assert [line for line in text.splitlines() if not own.match(line)] == []
    assert errors.read_text() == ""


def test_process__ctrl_c_stops_and_leaves_what_can_be_resumed(libsvm, tmp_path):
    log = tmp_path / "log"
    arguments = [libsvm, *REGRESSOR, "--epochs", "1000000", "--output-path", tmp_path, "--job-name", "first"]
    with log.open("w") as out:
        process = start("train", *arguments, stdout=out, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: "epoch=0, train rmse" in log.read_text())
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    said = "rayfm: interrupted; the job was stopped and wrote no model. It can be resumed by its name, first."
    assert errors.strip() == said
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["checkpoints", "job.json", "metrics.jsonl"]
    status = json.loads((tmp_path / "first" / "job.json").read_text())
    assert status["status"] == "Stopped"
    wait_until(lambda: not processes_of(process.pid), 20)
    done = int(Path(status["checkpoint"]).name.partition("-")[0])
    arguments[arguments.index("1000000")] = str(done + 2)
    with log.open("w") as out:
        assert start("train", *arguments, "--resume", stdout=out).wait(120) == 0
    assert f"Resumed from epoch {done + 1}: {tmp_path}/first/checkpoints/{done:06d}-000000.npz" in log.read_text()
    assert f"its epoch: {done + 2} of {done + 2}" in log.read_text()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "job.json",
        "metrics.jsonl",
        "model.safetensors",
    ]


def test_process__a_closed_pipe_is_no_error(model):
    process = start("inspect", model, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(30)


def test_process__a_bad_record_in_predict_is_one_line_without_rays_traceback(model, tmp_path, address):
    (tmp_path / "bad.libsvm").write_text("1 1:1\n1 2:nan\n")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start("predict", model, tmp_path / "bad.libsvm", address=address, **pipes)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output == ""
    assert re.fullmatch(r"rayfm: error: \S*bad\.libsvm:2: feature 1 is nan; .*\n", errors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full to write to")
def test_predict__output_that_cannot_be_written_is_an_error_also_unbuffered(model, monkeypatch):
    """Unbuffered, as containers run Python, standard output may take less than it is given, without a word."""
    from rayfm.training import scoring

    with open("/dev/full", "wb", buffering=0) as full, io.TextIOWrapper(full, write_through=True) as text:
        monkeypatch.setattr(sys, "stdout", text)
        with pytest.raises(StorageError, match="standard output cannot be written: No space left"):
            with scoring._opened("-") as file:
                file.write(b"0.5\n")
        monkeypatch.undo()
    read, write = os.pipe()
    short = _Short(write)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(short, write_through=True))
    with scoring._opened("-") as file:
        file.write(b"0123456789" * 100)
    monkeypatch.undo()
    os.close(write)
    with open(read, "rb") as result:
        assert result.read() == b"0123456789" * 100


class _Short(io.RawIOBase):
    """A stream that takes seven bytes at a time."""

    def __init__(self, descriptor):
        self._descriptor = descriptor

    def writable(self):
        return True

    def write(self, data):
        return os.write(self._descriptor, bytes(data[:7]))
