"""API keys: which are taken, where they are read, and that only digests remain."""

import hashlib

import pytest

from rayfm.errors import EndpointError
from rayfm.serving import keys

KEY = "0123456789abcdef"


def test_digests__are_all_that_is_kept():
    assert keys.digests([KEY]) == (hashlib.sha256(KEY.encode()).hexdigest(),)


@pytest.mark.parametrize(
    "key", ["short", "with space 0123456789", "0123456789abcdef\n", "a" * 257, "ключ-0123456789abc"]
)
def test_digests__refuses_what_can_be_guessed_or_sent_in_no_header(key):
    with pytest.raises(EndpointError, match="API key 2 must have 16 to 256 letters") as caught:
        keys.digests([KEY, key])
    assert key not in str(caught.value)


def test_known_keys__are_lines_of_a_file(tmp_path):
    (tmp_path / "keys").write_text(f"# team a\n{KEY}\n\n  fedcba9876543210  \n")
    assert keys.known_keys(tmp_path / "keys") == [KEY, "fedcba9876543210"]


def test_known_keys__come_from_the_environment_else(monkeypatch):
    monkeypatch.delenv("RAYFM_API_KEY", raising=False)
    assert keys.known_keys(None) == []
    monkeypatch.setenv("RAYFM_API_KEY", f"{KEY},fedcba9876543210")
    assert keys.known_keys(None) == [KEY, "fedcba9876543210"]


def test_known_keys__a_file_without_any_is_an_error(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(EndpointError, match="must hold a key on a line, got none"):
        keys.known_keys(tmp_path / "keys")
    with pytest.raises(EndpointError, match=r"cannot be read: .*No such file"):
        keys.known_keys(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("api_key", "authorization", "shown"),
    [
        ("a", "Bearer b", "a"),
        (None, "bearer  b ", "b"),
        (None, "AWS4-HMAC-SHA256 Credential=b/20261122/us-east-1/sagemaker/aws4_request, SignedHeaders=x", "b"),
        (None, "Bearer", None),
        (None, "Basic b", None),
        (None, None, None),
    ],
)
def test_shown_key__is_in_one_of_three_places(api_key, authorization, shown):
    assert keys.shown_key(api_key, authorization) == shown


def test_is_known__compares_digests():
    known = keys.digests([KEY, "fedcba9876543210"])
    assert keys.is_known("fedcba9876543210", known)
    assert not keys.is_known(known[0], known)
    assert not keys.is_known("\xff", known)
