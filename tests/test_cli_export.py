"""``rayfm export``: one model in every format, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rayfm.cli import cli
from rayfm.model import FactorizationMachine

GOLDEN = Path(__file__).parent / "golden" / "model" / "regressor_sparse_model.tar.gz"
EXPECTED = np.load(GOLDEN.with_name("regressor_sparse_expected.npz"))


def invoke(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="rayfm")


@pytest.mark.parametrize("name", ["model.safetensors", "model.tar.gz", "model.tgz"])
def test_export__from_sagemaker_and_back_keeps_the_scores(tmp_path, name):
    result = invoke("export", GOLDEN, tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (result.stdout, result.stderr) == ("", f"regressor of 7 features, 3 factors: {tmp_path / name}\n")
    assert invoke("export", tmp_path / name, tmp_path / "again.safetensors").exit_code == 0
    machine = FactorizationMachine.load(tmp_path / "again.safetensors")
    np.testing.assert_allclose(machine.predict(EXPECTED["X"]), EXPECTED["score"], atol=1e-6)


def test_export__for_other_programs(tmp_path):
    for name in ("m.parquet", "m.libfm"):
        assert invoke("export", GOLDEN, tmp_path / name).exit_code == 0
    assert pq.read_table(tmp_path / "m.parquet").num_rows == 7
    assert len((tmp_path / "m.libfm").read_text().splitlines()) == 3 + 1 + 7 + 7


def test_export__an_unknown_ending_exits_with_1_before_the_model_is_read(tmp_path):
    result = invoke("export", tmp_path / "gone.safetensors", tmp_path / "m.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("rayfm: error: the name of a model file must end in .safetensors, .tar.gz, ")


def test_export__a_missing_model_exits_with_1(tmp_path):
    result = invoke("export", tmp_path / "gone.tar.gz", tmp_path / "m.parquet")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "it does not exist" in result.stderr


def test_export__help_names_the_formats():
    text = invoke("export", "--help").stdout
    assert text.startswith("Usage: rayfm export ")
    assert all(ending in text for ending in (".safetensors", ".tar.gz", ".tgz", ".parquet", ".libfm"))
    assert text.count("  # ") >= 2


def test_inspect__shows_a_model_of_sagemaker():
    text = invoke("inspect", GOLDEN, "--top", "1").stdout
    assert "predictor_type  regressor" in text
    assert "mini_batch_size      1000" in text


def test_predict_and_evaluate__take_a_model_of_sagemaker(ray_cluster, tmp_path):
    rows = [" ".join(f"{key}:{value}" for key, value in enumerate(row) if value) for row in EXPECTED["X"]]
    lines = [f"{label} {row}\n" for label, row in zip(EXPECTED["score"], rows, strict=True)]
    data, scores = tmp_path / "rows.libsvm", tmp_path / "scores.txt"
    data.write_text("".join(lines))
    result = invoke("predict", GOLDEN, data, "--index-base", "0", "--output", scores)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.loadtxt(scores), EXPECTED["score"], atol=1e-6)
    result = invoke("evaluate", GOLDEN, data, "--index-base", "0", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rmse"] == pytest.approx(0, abs=1e-6)
