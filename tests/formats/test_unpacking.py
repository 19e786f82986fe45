"""Archives of unknown origin: what is refused, and that nothing grows with what they declare."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.errors import ModelFileError
from rayfm.formats import unpacking

LIMIT = 1 << 24
NAME = r"model_algo-\d{1,4}"


def packed(*members, **options):
    """A gzipped tar of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=9, **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(*members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return memoryview(file.getvalue())


def special(name, type_, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type_, link
    return info, b""


def unpack(content, limit=LIMIT):
    return unpacking.unpacked_member(io.BytesIO(content), NAME, limit)


def member(content, name="a", limit=LIMIT):
    return unpacking.inflated_member(content, unpacking.zip_directory(content), name, limit)


def peak_bytes(function, *arguments):
    """Memory that a refused archive took."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_unpacked_member__takes_the_first_that_matches_in_any_dialect_of_tar(layout):
    members = [
        special(".", tarfile.DIRTYPE),
        ("notes", b"x" * 700),
        ("./model_algo-1", b"one"),
        ("model_algo-2", b"two"),
    ]
    assert bytes(unpack(packed(*members, format=layout))) == b"one"


def test_unpacked_member__reads_extended_headers():
    info = tarfile.TarInfo("x" * 20)
    info.pax_headers = {"path": "model_algo-1", "comment": "of several\nlines", "mtime": "1.5"}
    assert bytes(unpack(packed((info, b"one"), format=tarfile.PAX_FORMAT))) == b"one"


def test_unpacked_member__may_be_empty_or_larger_than_a_chunk():
    large = bytes(range(256)) * 8200
    assert bytes(unpack(packed(("model_algo-1", large)))) == large
    assert bytes(unpack(packed(("model_algo-1", b"")))) == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold model_algo-1 at its top, it holds nothing"),
        (b"PK\3\4", "must be gzip"),
        (gzip.compress(b"x" * 600), "must be a tar file"),
        (gzip.compress(b"x" * 100), "must be a tar file"),
        (packed(("model_algo-1", b"one"))[:-9], "ends too early"),
        (packed(("model_algo-1", b"one"))[:-8] + bytes(8), "must be gzip .*CRC"),
        (gzip.compress(gzip.decompress(packed(("model_algo-1", b"one")))[:520]), "504 bytes too early|too early"),
        (packed(("a/model_algo-1", b""), ("b", b"")), "it holds 'a/model_algo-1', 'b'"),
        (packed(("/model_algo-1", b"")), "must not lead out of it, got '/model_algo-1'"),
        (packed(("a/../../model_algo-1", b"")), "must not lead out of it"),
        (packed(special("model_algo-1", tarfile.SYMTYPE, "/etc/passwd")), "only files, got 'model_algo-1', a link"),
        (packed(special("model_algo-1", tarfile.LNKTYPE, "b")), "a link or device"),
        (packed(special("d", tarfile.CHRTYPE)), "a link or device"),
        (packed(special("d", tarfile.FIFOTYPE)), "a link or device"),
        (packed(special("d", tarfile.GNUTYPE_SPARSE)), "a link or device"),
        (packed(("model_algo-1", b"1"), ("./model_algo-1", b"2")), "must occur once in the archive"),
        (packed(*((f"x{i}", b"") for i in range(70))), "must have < 64 members"),
        (packed(("other", bytes(2 << 20))), r"'other' is too large \(2097152 bytes"),
        (packed(("model_algo-1", bytes(LIMIT + 1))), "'model_algo-1' is too large"),
        (packed(*((f"model_algo-{i}", bytes(LIMIT // 2)) for i in range(3))), "must unpack to <= 16777216 bytes"),
        (packed(("model_algo-1", b"")) + gzip.compress(bytes(3 << 20)), "more than 1048576 bytes after its end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives hold the time
)  # fmt: skip
def test_unpacked_member__hostile_archives_are_refused(content, message):
    with pytest.raises(ModelFileError, match=message):
        unpack(content)


def test_unpacked_member__names_that_cannot_be_printed_are_escaped():
    with pytest.raises(ModelFileError, match=r"it holds 'a\\x1b\[31m\\udcff'"):
        unpack(packed(("a\x1b[31m\udcff", b""), format=tarfile.GNU_FORMAT))


def test_unpacked_member__a_bomb_takes_no_memory():
    """A kilobyte of gzip for each megabyte: in the member, in a member nobody asked for, in a header."""
    zeros = bytes(16 << 20)
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    bombs = [packed(("model_algo-1", zeros)), packed(("other", zeros)), packed((header, zeros))]
    for bomb in bombs:
        assert peak_bytes(unpack, bomb, 15 << 20) < 4 << 20


def test_unpacked_member__sizes_that_are_lies_are_refused():
    content = bytearray(gzip.decompress(packed(("model_algo-1", b"one"))))
    for size in (b"\x80" + bytes(3) + struct.pack(">Q", 2**62), b"\xff" * 12, b"77777777777\0"):
        content[124:136] = size
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        assert peak_bytes(unpack, gzip.compress(content)) < 4 << 20


def test_limit__is_some_gigabytes_or_a_multiple_of_the_file():
    file = io.BytesIO(b"x" * 1000)
    file.seek(10)
    assert (unpacking.size_bytes(file), file.tell()) == (1000, 0)
    assert unpacking.limit_bytes(1000) == 1 << 32
    assert unpacking.limit_bytes(1 << 30) == 1 << 38


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 9000 + bytes(3 << 20)])
def test_inflated_member__gives_the_content(method, content):
    assert bytes(member(zipped(("b", b"other"), ("a", content), method=method))) == content


def test_inflated_member__stored_is_a_view():
    content = zipped(("a", b"abc"))
    assert member(content).obj is content.obj


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (memoryview(b""), "model_algo-1 must be a zip file"),
        (memoryview(b"x" * 100), "model_algo-1 must be a zip file"),
        (zipped(("b", b"")), "must hold a, it holds 'b'"),
        (zipped(*((str(i), b"") for i in range(65))), "must have <= 64 members, got 65"),
        (zipped(("a", bytes(LIMIT + 1)), method=zipfile.ZIP_DEFLATED), "a must have <= 16777216 bytes, got 16777217"),
        (zipped(("a", b"abc"), method=zipfile.ZIP_BZIP2), "a must be stored or deflated"),
        (memoryview(bytes(zipped(("a", b"abc"))).replace(b"abc", b"abd")), "does not fit its size and checksum"),
        (memoryview(bytes(zipped(("a", b"abc"))).replace(b"PK\3\4", b"PK\3\5")), "does not begin where"),
        (memoryview(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 9, 9, 1 << 18, 0, 0) + bytes(9)), "must be a zip file"),
    ],
)
def test_inflated_member__hostile_zip_files_are_refused(content, message):
    with pytest.raises(ModelFileError, match=message):
        member(content)


def test_zip_directory__names_that_occur_twice_are_refused():
    content = bytes(zipped(("a", b"1"), ("b", b"2"))).replace(b"b", b"a")
    with pytest.raises(ModelFileError, match="a name must occur once in model_algo-1"):
        unpacking.zip_directory(memoryview(content))


def test_zip_directory__a_large_one_is_not_read():
    entries = b"".join(b"PK\1\2" + bytes(26) + b"\1" + bytes(15) + bytes([i % 256]) for i in range(60_000))
    content = entries + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 60_000, 60_000, len(entries), 0, 0)
    assert peak_bytes(unpacking.zip_directory, memoryview(content)) < 1 << 20


def test_inflated_member__more_or_less_than_declared_is_refused():
    content = bytes(9 << 20)
    honest = bytes(zipped(("a", content), method=zipfile.ZIP_DEFLATED))
    for size in (1000, len(content) - 1, len(content) + 1):
        lie = memoryview(honest.replace(struct.pack("<L", len(content)), struct.pack("<L", size)))
        assert peak_bytes(member, lie) < 6 << 20
        with pytest.raises(ModelFileError, match=f"a must inflate to {size} bytes"):
            member(lie)


def test_inflated_member__data_that_cannot_be_inflated_is_refused():
    with pytest.raises(ModelFileError, match="cannot be inflated"):
        content = bytearray(zipped(("a", bytes(1000)), method=zipfile.ZIP_DEFLATED))
        content[31:34] = b"\xff\xff\xff"
        member(memoryview(bytes(content)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_unpacking__any_damage_is_a_model_file_error_or_harmless(data):
    """Damage under the checksums too: of the zip file within the tar, and of the tar within gzip."""

    def damaged(content):
        content = bytearray(content)
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 46, 48, 127, 255]))
        return bytes(content)

    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    inner = damaged(zipped(("a", b"abcabcabc"), ("b", b""), method=method))
    archive = damaged(gzip.decompress(packed(("model_algo-1", inner), format=tarfile.PAX_FORMAT))[:2048])
    content = damaged(gzip.compress(archive, mtime=0))
    try:
        assert bytes(member(unpack(content))) in (b"abcabcabc", b"")
    except ModelFileError:
        pass
