import bz2
import errno
import gzip
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest

from rayfm import storage
from rayfm.errors import DataError, StorageError
from rayfm.storage import (
    JsonLines,
    atomic_writer,
    check_writable,
    is_compressed,
    list_files,
    open_input,
    read_bytes,
    resolve,
)

S3 = "s3://rayfm-test"


@pytest.fixture
def tree(tmp_path):
    """Files, hidden ones among them; each holds as many bytes as its name has letters."""
    names = ["a/1.pbr", "a/2.pbr", "a/deep/3.pbr", "ab/4.pbr", "b.txt", "_SUCCESS", ".amazon.x", "a/_tmp/5", "a/.6"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x" * len(path.name))
    return tmp_path


@pytest.fixture
def tree_in_s3(tree, bucket):
    for path in tree.rglob("*"):
        if path.is_file():
            bucket.put_object(Key=str(path.relative_to(tree)), Body=path.read_bytes())
    return S3


def names(files, root):
    return [file.uri.removeprefix(f"{root}/") for file in files]


def content(uri, **options):
    with open_input(uri, **options) as file:
        return file.read()


# ---- URIs


@pytest.mark.parametrize(
    "form", ["data/x y.txt", "./data/../data/x y.txt", "~/data/x y.txt", "file://{}/data/x%20y.txt"]
)
def test_resolve__local_forms_mean_the_same_file(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    filesystem, path = resolve(form.format(tmp_path))
    assert isinstance(filesystem, pyarrow.fs.LocalFileSystem) and path == f"{tmp_path}/data/x y.txt"
    assert resolve(Path("data") / "x y.txt")[1] == path


def test_resolve__unknown_scheme_names_the_known_ones():
    with pytest.raises(StorageError, match=r"must be one of file://, s3://, gs://, hdfs://, abfs://, got ftp://h/x"):
        resolve("ftp://h/x")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "must not be empty"),
        ("file://host/x", "must name no host"),
        ("s3://", "s3:// cannot be opened.*: it names no bucket"),
    ],
)
def test_resolve__malformed_uri_is_refused(uri, message):
    with pytest.raises(StorageError, match=message):
        resolve(uri)


def test_resolve__google_storage_gives_up_soon_and_takes_spaces_in_keys():
    filesystem, path = resolve("gs://bucket/a key/")
    assert (filesystem.type_name, path) == ("gcs", "bucket/a key")


def test_resolve__s3_endpoint_and_region_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special:2/")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    filesystem, path = resolve("s3://bucket/a key?")
    options = filesystem.__reduce__()[1][0]
    assert (options["endpoint_override"], options["scheme"]) == ("special:2", "http")
    assert (filesystem.region, path) == ("eu-west-3", "bucket/a key?")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert resolve("s3://bucket/key")[0].region == "eu-west-1"
    assert resolve("s3://bucket/key?region=us-west-2")[0].region == "us-west-2"


def test_resolve__endpoint_without_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL must be http\(s\)://host:port, got 'localhost:9000'"):
        resolve("s3://bucket/key")


def test_resolve__region_is_asked_of_aws_when_nothing_tells_it(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pyarrow.fs, "resolve_s3_region", {"bucket": "sa-east-1"}.__getitem__)
    assert resolve("s3://bucket/key")[0].region == "sa-east-1"


@pytest.mark.timeout(30)
def test_list_files__endpoint_that_refuses_connections_is_named(monkeypatch):
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(StorageError, match=r"s3://b/k cannot be listed \(endpoint http://127.*cannot be reached"):
        list_files("s3://b/k")


# ---- listing, on a local disk and in S3 alike


@pytest.fixture(params=["local", "s3"])
def root(request):
    return str(request.getfixturevalue("tree" if request.param == "local" else "tree_in_s3"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("b.txt", ["b.txt"]),
        ("_SUCCESS", ["_SUCCESS"]),
        ("a", ["a/1.pbr", "a/2.pbr", "a/deep/3.pbr"]),
        ("a/", ["a/1.pbr", "a/2.pbr", "a/deep/3.pbr"]),
        ("a/_tmp", ["a/_tmp/5"]),
        ("a/de", ["a/deep/3.pbr"]),
        ("b", ["b.txt"]),
        ("_S", ["_SUCCESS"]),
        ("*", ["a/1.pbr", "a/2.pbr", "a/deep/3.pbr", "ab/4.pbr", "b.txt"]),
        ("a*", ["a/1.pbr", "a/2.pbr", "a/deep/3.pbr", "ab/4.pbr"]),
        ("a?", ["ab/4.pbr"]),
        ("a*/?.pbr", ["a/1.pbr", "a/2.pbr", "ab/4.pbr"]),
        ("*/deep/*", ["a/deep/3.pbr"]),
        ("a/_*/*", ["a/_tmp/5"]),
    ],
)
def test_list_files__finds_what_is_meant(root, given, expected):
    files = list_files(f"{root}/{given}")
    assert names(files, root) == expected
    assert [file.size_bytes for file in files] == [len(Path(name).name) for name in expected]
    assert all(len(read_bytes(file.uri)) == file.size_bytes for file in files)


def test_list_files__keeps_the_order_of_the_uris_given(root):
    assert names(list_files([f"{root}/b.txt", f"{root}/a/deep"]), root) == ["b.txt", "a/deep/3.pbr"]


@pytest.mark.parametrize("given", ["c", "a/9*", "a/1.pbr.gz"])
def test_list_files__nothing_found_is_an_error(root, given):
    with pytest.raises(StorageError, match="no file at ") as caught:
        list_files([f"{root}/a", f"{root}/{given}"])
    assert f"{root}/{given}" in str(caught.value)


def test_list_files__brackets_in_names_are_no_pattern(tmp_path):
    (tmp_path / "part[1].txt").write_bytes(b"x")
    assert names(list_files(tmp_path / "part[1]*"), tmp_path) == ["part[1].txt"]


def test_list_files__existing_name_with_a_star_is_no_pattern(tmp_path):
    for name in ("a*", "ab"):
        (tmp_path / name).write_bytes(b"x")
    assert names(list_files(tmp_path / "a*"), tmp_path) == ["a*"]


def test_list_files__suggests_near_names(tree):
    with pytest.raises(StorageError, match=r"no file at .*/a/1\.bpr\. Did you mean .*/a/[12]\.pbr"):
        list_files(tree / "a" / "1.bpr")
    with pytest.raises(StorageError, match=r"Did you mean .*/a/deep"):
        list_files(tree / "a" / "depe" / "3.pbr")


def test_list_files__folder_of_hidden_files_says_so(tmp_path):
    (tmp_path / "_x").write_bytes(b"")
    with pytest.raises(StorageError, match=r"names begin with . or _, which are skipped"):
        list_files(tmp_path)


def test_list_files__missing_bucket_is_no_file(s3_endpoint):
    with pytest.raises(StorageError, match=r"no file at s3://rayfm-tes. Check the bucket"):
        list_files("s3://rayfm-tes")


def test_list_files__options_of_the_uri_stay_in_the_result(tree_in_s3, s3_endpoint, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={s3_endpoint.removeprefix('http://')}&scheme=http&region=us-east-1"
    (file,) = list_files(f"{S3}/a/de{options}")
    assert file.uri == f"{S3}/a/deep/3.pbr{options}"
    assert read_bytes(file.uri) == b"xxxxx"


# ---- manifests


def test_list_files__a_manifest_lends_its_options_to_the_files_it_lists(tree_in_s3, bucket, s3_endpoint, monkeypatch):
    bucket.put_object(Key=".amazon.manifest", Body=manifest_of(f"{S3}/a/", ["1.pbr"]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = f"?endpoint_override={s3_endpoint.removeprefix('http://')}&scheme=http&region=us-east-1"
    (file,) = list_files(f"{S3}/.amazon.manifest{options}")
    assert file.uri == f"{S3}/a/1.pbr{options}"
    assert len(read_bytes(file.uri)) == file.size_bytes


def manifest_of(prefix, names):
    return json.dumps([{"prefix": prefix}, *names]).encode()


def test_list_files__manifest_is_read_in_its_order(tree_in_s3, bucket):
    bucket.put_object(Key=".amazon.manifest", Body=manifest_of(f"{S3}/a/", ["2.pbr", "deep/3.pbr", "1.pbr"]))
    files = list_files(f"{S3}/.amazon.manifest")
    assert names(files, S3) == ["a/2.pbr", "a/deep/3.pbr", "a/1.pbr"]
    assert [file.size_bytes for file in files] == [5, 5, 5]


@pytest.mark.parametrize("prefix", ["a/", "{}/a/", "file://{}/a/"])
def test_list_files__local_manifest_may_name_neighbours(tree, prefix):
    (tree / "x.manifest").write_bytes(manifest_of(prefix.format(tree), ["1.pbr"]))
    (file,) = list_files(tree / "x.manifest")
    assert read_bytes(file.uri) == b"xxxxx"


def test_list_files__manifest_that_lists_a_missing_file_names_both(tree):
    (tree / "x.manifest").write_bytes(manifest_of(f"{tree}/", ["b.txt", "c.txt"]))
    with pytest.raises(StorageError, match=r"no file at .*/c\.txt, which the manifest .*/x\.manifest lists"):
        list_files(tree / "x.manifest")


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"{}", b"[]", b"[{}, 1]", b'[{"prefix": "x"}]', b'["x", "y"]', b'[{"prefix": 1}, "y"]']
)
def test_list_files__bad_manifest_is_a_data_error(tmp_path, text):
    (tmp_path / "x.manifest").write_bytes(text)
    with pytest.raises(DataError, match=r"x\.manifest: a manifest must be"):
        list_files(tmp_path / "x.manifest")


# ---- reading


def test_open_input__is_seekable(root):
    with open_input(f"{root}/b.txt") as file:
        assert file.seekable() and file.seek(3) == 3 and file.read(10) == b"xx" and file.read(1) == b""


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("x.gz", gzip.compress),
        ("x.GZ", gzip.compress),
        ("x.bz2", bz2.compress),
        ("x.zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        ("no_suffix", gzip.compress),
        ("members.gz", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
    ],
)
def test_open_input__decompresses_what_is_compressed(tmp_path, name, compress):
    data = bytes(range(256)) * 9000
    (tmp_path / name).write_bytes(compress(data))
    assert is_compressed(tmp_path / name)
    with open_input(tmp_path / name) as file:
        assert file.read(5) == data[:5] and file.read() == data[5:] and file.read(1) == b""
    assert content(tmp_path / name, compressed=True) == data
    assert content(tmp_path / name, compressed=False) == (tmp_path / name).read_bytes()


def test_open_input__decompresses_from_s3(bucket):
    bucket.put_object(Key="x y+z.gz", Body=gzip.compress(b"one\ntwo\n"))
    with open_input(f"{S3}/x y+z.gz") as file:
        assert list(file) == [b"one\n", b"two\n"]


def test_open_input__plain_file_is_not_compressed(tmp_path):
    (tmp_path / "x").write_bytes(b"\x1f")
    assert not is_compressed(tmp_path / "x") and content(tmp_path / "x") == b"\x1f"
    with pytest.raises(DataError, match="must be gzip, bzip2 or Zstandard"):
        open_input(tmp_path / "x", compressed=True)


@pytest.mark.parametrize("keep", [1, 9, 500, -1])
def test_open_input__truncated_gzip_is_a_data_error(tmp_path, keep):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(1).bytes(1000))[:keep])
    with pytest.raises(DataError, match=r"cut\.gz: the compressed data ends too early"):
        content(path)


def test_open_input__damaged_gzip_is_a_data_error(tmp_path):
    path = tmp_path / "bad.gz"
    path.write_bytes(gzip.compress(b"abc")[:-5] + b"xxxxx")
    with pytest.raises(DataError, match=r"bad\.gz: the compressed data is damaged"):
        content(path)


def test_open_input__missing_file_and_folder_are_storage_errors(root):
    with pytest.raises(StorageError, match=r"/nope cannot be read.*: it does not exist"):
        open_input(f"{root}/nope", compressed=False)
    with pytest.raises(StorageError, match="/a cannot be read"):
        open_input(f"{root}/a")


def test_read_bytes__missing_bucket_is_a_storage_error(s3_endpoint):
    with pytest.raises(StorageError, match=r"s3://rayfm-none/x cannot be read \(endpoint http://.*\): "):
        read_bytes("s3://rayfm-none/x")


def test_list_files__path_through_a_file_says_so(tree):
    with pytest.raises(StorageError, match=r"/b\.txt/x cannot be listed: a part of its path is a file"):
        list_files(tree / "b.txt" / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("When testing 'k': AWS Error ACCESS_DENIED during HeadObject", "access denied. Check the credentials"),
        ("When reading: AWS Error INVALID_ACCESS_KEY_ID during", "the access key is unknown. Check AWS_ACCESS_KEY_ID"),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during", "the secret key is wrong. Check AWS_SECRET_ACCESS_KEY"),
        ("Something else.", r"s3://b/k cannot be read: Something else\.$"),
    ],
)
def test_read_bytes__refusals_of_s3_are_explained(text, message, monkeypatch):
    class Refusing:
        def open_input_file(self, path):
            raise OSError(text)

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr("rayfm.storage.reading.resolve", lambda uri: (Refusing(), "b/k"))
    with pytest.raises(StorageError, match=message):
        read_bytes("s3://b/k")


# ---- writing


@pytest.fixture(params=["local", "s3"])
def target(request, tmp_path):
    if request.param == "local":
        return f"{tmp_path}/out/deep/model.bin"
    request.getfixturevalue("bucket")
    return f"{S3}/out/deep/model.bin"


def left_over(target):
    """Everything stored beside `target`, hidden names too."""
    filesystem, path = resolve(target)
    folder = pyarrow.fs.FileSelector(os.path.dirname(path), allow_not_found=True)
    return [info.base_name for info in filesystem.get_file_info(folder) if info.type == pyarrow.fs.FileType.File]


@pytest.mark.parametrize("size", [0, 3, 12 << 20])
def test_atomic_writer__writes_and_replaces(target, size):
    for data in (b"old", b"x" * size):
        with atomic_writer(target) as file:
            file.write(data)
        assert read_bytes(target) == data
    assert left_over(target) == ["model.bin"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_atomic_writer__exception_leaves_nothing_and_passes_unchanged(target, error):
    with pytest.raises(error), atomic_writer(target) as file:
        file.write(b"x" * (6 << 20))
        raise error
    assert left_over(target) == []


def test_atomic_writer__exception_keeps_the_old_file(target):
    with atomic_writer(target) as file:
        file.write(b"old")
    with pytest.raises(FileNotFoundError), atomic_writer(target) as file:
        file.write(b"new")
        raise FileNotFoundError("the user's own")
    assert read_bytes(target) == b"old" and left_over(target) == ["model.bin"]


def test_atomic_writer__local_file_is_hidden_until_complete_and_seekable(tmp_path):
    with atomic_writer(tmp_path / "x") as file:
        file.write(b"abc")
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        file.seek(0)
        file.write(b"A")
    assert (tmp_path / "x").read_bytes() == b"Abc"


def test_atomic_writer__file_has_the_usual_mode_and_links_are_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_writer(tmp_path / "link") as file:
        file.write(b"abc")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o666 & ~mask


def test_atomic_writer__devices_are_written_not_replaced():
    with atomic_writer("/dev/null") as file:
        file.write(b"abc")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_atomic_writer__pipes_are_written_directly():
    reader, writer = os.pipe()
    with atomic_writer(f"/dev/fd/{writer}") as file:
        file.write(b"abc")
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"abc"


def test_atomic_writer__full_disk_is_a_storage_error_with_a_remedy():
    with pytest.raises(StorageError, match=r"/dev/full cannot be written: no space left. Free space") as caught:
        with atomic_writer("/dev/full") as file:
            file.write(b"abc")
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_atomic_writer__impossible_places_are_storage_errors(tmp_path, bucket, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    cases = {
        tmp_path / "folder": "it is a folder. Name a file",
        tmp_path / "file" / "x": "a file, not a folder|a file has that name",
        "s3://rayfm-none/x": "s3://rayfm-none/x cannot be written .*: the bucket does not exist. Create it",
    }
    for uri, message in cases.items():
        with pytest.raises(StorageError, match=message), atomic_writer(uri) as file:
            file.write(b"abc")


def deny(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_atomic_writer__no_permission_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", deny)
    with pytest.raises(StorageError, match=r"/x cannot be written: permission denied. Grant access"):
        with atomic_writer(tmp_path / "x") as file:
            file.write(b"abc")
    assert list(tmp_path.iterdir()) == []


def test_remove_abandoned__deletes_what_a_killed_writer_has_left_and_nothing_else(tmp_path):
    script = f"""
import os
from rayfm.storage import atomic_writer
with atomic_writer({str(tmp_path / "model.bin")!r}) as file:
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    [left] = os.listdir(tmp_path)
    assert left.startswith(".model.bin.")
    others = {".hidden.tmp", "a.1.0123abcd.tmp", ".model.bin.1.0123abcd.tmpx"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    storage.remove_abandoned(tmp_path)
    assert set(os.listdir(tmp_path)) == others
    storage.remove_abandoned(tmp_path / "none")


def test_remove_folder__deletes_all_below_and_minds_no_missing_one(target):
    folder = os.path.dirname(os.path.dirname(target))
    for uri in (target, os.path.dirname(target) + "/x"):
        with atomic_writer(uri) as file:
            file.write(b"abc")
    assert sorted(storage.list_names(os.path.dirname(target))) == ["model.bin", "x"]
    storage.remove_folder(folder)
    assert left_over(target) == storage.list_names(os.path.dirname(target)) == []
    storage.remove_folder(folder)


def test_json_lines__can_be_replaced(target):
    lines = JsonLines(target)
    lines.write_all([{"a": 1}, {"a": 2}])
    lines.replace([{"a": 3}])
    lines.write({"a": 4})
    assert read_bytes(target) == b'{"a": 3}\n{"a": 4}\n'


def test_check_writable__leaves_no_file(target):
    check_writable(os.path.dirname(target))
    assert left_over(target) == []


def test_check_writable__finds_what_cannot_be_written(tmp_path, bucket, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for uri in (tmp_path / "file", "s3://rayfm-none/x"):
        with pytest.raises(StorageError, match="cannot be written"):
            check_writable(uri)
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(StorageError, match="cannot be written: permission denied"):
        check_writable(tmp_path)


# ---- JSON lines


def test_json_lines__grow_and_survive_a_restart(target):
    for epoch in range(3):
        lines = JsonLines(target)
        lines.write({"epoch": epoch})
        lines.write({"epoch": epoch, "host": "ü"})
        assert len(read_bytes(target).splitlines()) == 2 * (epoch + 1)
    records = [json.loads(line) for line in read_bytes(target).splitlines()]
    assert [record["epoch"] for record in records] == [0, 0, 1, 1, 2, 2]


def test_json_lines__what_is_not_finite_becomes_null(target):
    record = {"a": float("nan"), "b": [np.float32("inf"), 1.5], "c": {"d": np.array([1.0, np.nan])}, "e": np.int64(3)}
    JsonLines(target).write(record)
    assert read_bytes(target) == b'{"a": null, "b": [null, 1.5], "c": {"d": [1.0, null]}, "e": 3}\n'


def test_json_lines__torn_line_does_not_spoil_the_next(target):
    with atomic_writer(target) as file:
        file.write(b'{"a": 1}\n{"b"')
    lines = JsonLines(target)
    lines.write({"c": 1})
    lines.write({"d": 1})
    assert read_bytes(target) == b'{"a": 1}\n{"b"\n{"c": 1}\n{"d": 1}\n'


def test_json_lines__impossible_place_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be"):
        JsonLines(tmp_path).write({"a": 1})


def test_storage__every_public_name_is_importable():
    assert all(hasattr(storage, name) for name in storage.__all__)
