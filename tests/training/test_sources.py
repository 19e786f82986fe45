"""Channels: whatever the files look like, the same rows in the same order."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import ray
import scipy.sparse as sp

from rayfm.batch import RowRules, SparseBatch
from rayfm.errors import DataError, StoppedError
from rayfm.formats import libsvm, recordio
from rayfm.reading import ReadOptions
from rayfm.training import cluster, sources
from rayfm.training.blocks import Reading
from rayfm.training.sources import as_source, read
from tests.conftest import SECOND_RAY

pytestmark = [pytest.mark.usefixtures("ray_cluster"), SECOND_RAY]


@pytest.fixture(autouse=True)
def quiet():
    cluster.quiet_data_context()


def rows(count=500, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    features = sp.random(count, dim, density=0.3, format="csr", dtype=np.float32, rng=rng)
    return SparseBatch.from_scipy(features, np.arange(count))


def write(path, batch, module=recordio, opener=open, **options):
    with opener(path, "wb") as file:
        module.write(file, batch, **options)
    return str(path)


def channel(data, index_base=None, rules=None, **options):
    blocks = read(as_source(data, options=ReadOptions(**options)), rules or RowRules(), index_base)
    tables = ray.get([block for block, _ in blocks.dealt])
    return blocks, SparseBatch.concatenate([SparseBatch.from_arrow(table) for table in tables])


def assert_same(one, other):
    for name in ("indptr", "keys", "values", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(params=["here", "tasks"])
def small_pieces(request, monkeypatch):
    """Cut files into small pieces, and read them in this process or in tasks."""
    monkeypatch.setattr(sources, "MAX_PIECE_BYTES", 2000)
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 100)
    if request.param == "tasks":
        monkeypatch.setattr("rayfm.training.blocks.WHILE_STARTING_BYTES", 0)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("module", [recordio, libsvm])
def test_read__one_file_in_many_byte_ranges_is_the_file_in_order(tmp_path, module):
    blocks, batch = channel(write(tmp_path / "rows", rows(), module), index_base=0)
    assert len(blocks.dealt) > 5
    assert_same(batch, rows())


@pytest.mark.usefixtures("small_pieces")
def test_read__a_bad_record_in_a_later_range_has_its_number_in_the_file(tmp_path):
    batch = rows()
    batch.values[batch.indptr[400]] = np.nan
    for module in (recordio, libsvm):
        path = write(tmp_path / module.__name__, batch, module)
        with pytest.raises(DataError, match=rf":401: feature {batch.keys[batch.indptr[400]]} is nan"):
            channel(path, index_base=0)


def test_read__gzip_folders_prefixes_and_manifests_are_the_same_rows(tmp_path):
    batch = rows()
    parts = [batch.rows(0, 200), batch.rows(200, 201), batch.rows(201, 500)]
    (tmp_path / "data").mkdir()
    for index, part in enumerate(parts):
        write(tmp_path / "data" / f"part-{index}.pbr.gz", part, opener=gzip.open)
    (tmp_path / "data" / "part-3.pbr").write_bytes(b"")
    (tmp_path / "data" / "_SUCCESS").write_bytes(b"")
    names = [f"part-{index}.pbr.gz" for index in range(3)]
    (tmp_path / ".amazon.manifest").write_text(json.dumps([{"prefix": f"{tmp_path}/data/"}, *names]))
    for uri in ("data", "data/part-", "data/part-?.pbr*", ".amazon.manifest"):
        assert_same(channel(str(tmp_path / uri))[1], batch)


def test_read__guesses_the_index_base_once_and_says_so(tmp_path):
    write(tmp_path / "one.libsvm", rows(), libsvm, index_base=1)
    blocks, batch = channel(str(tmp_path / "one.libsvm"))
    assert blocks.index_base == 1
    assert "counted from 1" in blocks.notes[0]
    assert_same(batch, rows())
    # the other channels follow the training data, whatever they look like by themselves
    (tmp_path / "few.libsvm").write_text("1 3:1\n")
    followed, few = channel(str(tmp_path / "few.libsvm"), index_base=None)
    assert (followed.index_base, few.keys.tolist()) == (1, [2])
    blocks = read(as_source(str(tmp_path / "few.libsvm")), RowRules(), 0)
    assert SparseBatch.from_arrow(ray.get(blocks.dealt[0][0])).keys.tolist() == [3]


def test_read__knows_the_width_or_infers_it(tmp_path):
    assert channel(write(tmp_path / "a.pbr", rows(), feature_dim=40))[0].feature_dim == 40
    assert channel(write(tmp_path / "a.libsvm", rows(), libsvm), index_base=0)[0].feature_dim == 12


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (np.ones((3, 2)), np.ones(2), r"labels of train must have shape \(3,\), got \(2,\)"),
        (np.ones(3), None, "features must have 2 dimensions"),
        (np.zeros((0, 2)), np.zeros(0), "there are no rows"),
    ],
)
def test_read__says_what_is_wrong_with_matrices(data, labels, message):
    with pytest.raises(DataError, match=message):
        read(as_source(data, labels, None, None, "train"), RowRules())


@pytest.mark.usefixtures("small_pieces")
def test_read__by_ray_data_is_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "rows", rows(), feature_dim=40)
    by_tasks, batch = channel(path)
    monkeypatch.setattr(cluster, "is_one_machine", lambda: False)  # Ray Data spreads files over several
    by_ray_data, other = channel(path)
    assert by_tasks.owner is None
    assert by_ray_data.owner is not None
    assert_same(batch, other)
    assert_same(batch, rows())
    assert by_tasks.num_entries == by_ray_data.num_entries == rows().num_entries
    assert by_tasks.feature_dim == by_ray_data.feature_dim == 40


@pytest.mark.usefixtures("small_pieces")
def test_read__shows_blocks_in_order_and_can_be_ended(tmp_path):
    path = write(tmp_path / "rows", rows())
    seen = []
    blocks = read(as_source(path), RowRules(), reading=Reading(seen=seen.append))
    assert [(block.table, block.survey.num_rows) for block in seen] == blocks.dealt
    left = iter([None] * 3)

    def end():
        if next(left, "over") == "over":
            raise StoppedError("enough.")

    with pytest.raises(StoppedError, match="enough"):
        read(as_source(path), RowRules(), reading=Reading(check=end))


def test_read_tasks__import_no_numba():
    """Ray cancels a task by an interrupt: in the middle of that import it would break the process for later tasks."""
    code = "import sys, rayfm.training.sources; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
