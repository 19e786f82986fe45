"""The API reference: CONTRIBUTING.md's command makes it, without a warning, and it has every public name."""

import html
import re
import shlex
import subprocess
import sys

import pytest

import rayfm
import rayfm.sagemaker
from tests.documents import ROOT, blocks


def command():
    """What CONTRIBUTING.md says, as a list of words."""
    (line,) = [line for block in blocks("CONTRIBUTING.md") for line in block.commands if " pdoc " in line]
    return shlex.split(line)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages by the names of their modules."""
    folder = tmp_path_factory.mktemp("reference")
    python, *arguments = command()
    assert python == "python"
    made = subprocess.run([sys.executable, "-W", "error", *arguments], cwd=folder, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    api = folder / "api"
    return {
        ".".join(path.relative_to(api).with_suffix("").parts): path.read_text()
        for path in api.rglob("*.html")
        if path.name != "index.html"
    }


def documented(page):
    """The names in a page that have a text, each with the text."""
    parts = re.split(r'<(?:section|div) id="([^"]+)"', page)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    texts = {name: re.search(r'<div class="docstring">(.*?)</div>', part, re.S) for name, part in found}
    return {name: html.unescape(re.sub(r"<[^>]+>", "", text[1])).strip() for name, text in texts.items() if text}


@pytest.mark.parametrize("module", [rayfm, rayfm.sagemaker])
def test_reference__has_every_public_name_with_a_text(pages, module):
    texts = documented(pages[module.__name__])
    assert [name for name in module.__all__ if not texts.get(name)] == []
    assert texts["FactorizationMachines.fit"].startswith("Start a training job and, unless told otherwise, wait for it")


def test_reference__has_pages_of_the_modules_that_are_named_and_links_between_them(pages):
    named = [word for word in command() if word.startswith("rayfm")]
    assert sorted(pages) == sorted(named)
    assert re.search(r'<a href="(\.\./)*rayfm/progress.html', pages["rayfm"])


def test_reference__has_no_markup_that_is_not_understood(pages):
    for name, page in pages.items():
        prose = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", page, flags=re.S)
        texts = " ".join(documented(prose).values())
        assert re.findall(r"::(?:\s|$)|={4,}|``|\.\. \w+::", texts) == [], name


def test_reference__is_not_for_git():
    folder = command()[command().index("-o") + 1]
    assert f"/{folder}/" in (ROOT / ".gitignore").read_text().splitlines()
