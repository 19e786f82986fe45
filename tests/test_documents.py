"""Every block of code in the documents runs, or says why it does not; then its commands are at least parsed."""

import argparse
import contextlib
import io
import re
import runpy
import shutil
import subprocess
import sys

import boto3
import click
import pytest
from click.testing import CliRunner

from rayfm.cli import cli
from tests.conftest import BUCKET
from tests.documents import DOCUMENTS, ROOT, blocks, parse, rayfm_commands, simple_commands

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
RUN = ("python", "sh")
SCRIPT = r"(?:examples|tests/benchmarks)/\w+\.py"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_block__runs_or_says_why_not(block):
    kind, _, rest = block.mark.partition(" ")
    if kind == "not":
        assert re.fullmatch(r"run: \w.+", rest)
    elif kind == "run":
        test = ROOT / rest.removeprefix("by ")
        assert block.document in test.read_text()
    else:
        assert block.language in RUN or block.language == "diff"  # which the test of the script that it is of applies


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=lambda block: block.place)
def test_command__is_one_that_rayfm_understands(block):
    assert "…" not in re.sub(r"#.*", "", block.text) and "..." not in block.text
    for line in block.commands:
        for arguments in rayfm_commands(line):
            parse(arguments)


@pytest.mark.parametrize("wrong", ["train x --factors 3", "trian x", "jobs lst", "predict model", "jobs list --all"])
def test_command__that_rayfm_does_not_understand_is_found(wrong):
    with pytest.raises(click.UsageError):
        parse(wrong.split())


def test_text__names_commands_that_there_are():
    for document in DOCUMENTS:
        for name in re.findall(r"`rayfm ([a-z][a-z-]+)", (ROOT / document).read_text()):
            assert name in cli.commands, document


def test_readme__names_tests_that_there_are():
    named = re.findall(r"`pytest (\S+) -k (\w+)`", (ROOT / "README.md").read_text())
    assert named
    for file, part in named:
        assert re.search(rf"^def test_\w*{part}", (ROOT / file).read_text(), re.M)


def script_commands():
    """Scripts and their arguments, by what stands in a document: in a block, in a table or in a docstring."""
    texts = [block.text.replace("\\\n", " ") for block in BLOCKS if block.language == "sh"]
    texts += [(ROOT / document).read_text() for document in ("README.md", "examples/README.md")]
    texts += [path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))]
    found = (line for text in texts for line in re.findall(rf"\bpython ({SCRIPT}[^`\n|#&]*)", text))
    submitted = (line for text in texts for line in re.findall(rf"ray submit \S+ ({SCRIPT} -- [^`\n|#&]*)", text))
    lines = {re.sub(r"\[[^]]*\]|\.\.\.", "", line).replace(" -- ", " ").strip() for line in (*found, *submitted)}
    return sorted(lines)


class Parsed(Exception):
    """The command line was parsed."""


@pytest.mark.parametrize("line", script_commands())
def test_script__takes_the_arguments_that_are_shown(line, monkeypatch):
    script, *arguments = simple_commands(line)[0]
    source = (ROOT / script).read_text()
    if "parse_args" not in source and "import Channels" not in source:
        assert not arguments
        return
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *given):
        real(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


class Checkout:
    """Runs blocks as if in a checkout, on the session's Ray. Where documents say BUCKET there is one.

    A command that is shown again, word by word, is not run again.
    """

    def __init__(self, url, bucket):
        self._places = {"http://127.0.0.1:8000": url, "s3://BUCKET/": f"s3://{bucket}/"}
        self._done = set()

    def run(self, block, session):
        """Run a block; `session` has the names of the document's Python. Return what is printed."""
        text = block.text
        for shown, meant in self._places.items():
            text = text.replace(shown, meant)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if block.language == "python":
                exec(compile(text, block.place, "exec"), session)
            else:
                for line in block._replace(text=text).commands:
                    self._command(line)
        return printed.getvalue()

    def _command(self, line):
        words, *others = simple_commands(line)
        if tuple(words) in self._done:
            return
        if not others and words[0] == "rayfm":
            result = CliRunner().invoke(cli, words[1:], prog_name="rayfm")
            assert result.exit_code == 0, f"{line}\n{result.output}"
            print(result.output)
        elif not others and re.fullmatch(rf"python {SCRIPT}", " ".join(words[:2])):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words[1:])
                runpy.run_path(words[1], run_name="__main__")
        else:
            shell = ["bash", "-euo", "pipefail", "-c", line.replace("curl ", "curl --silent --show-error --fail ")]
            print(subprocess.run(shell, check=True, capture_output=True, text=True).stdout)
        self._done.add(tuple(words))


@pytest.fixture(scope="module")
def printed(ray_cluster, serve_url, s3_endpoint, tmp_path_factory):
    """What is printed when all is run that is to be run, in its order: by document, then by a block's first line."""
    if shutil.which("curl") is None:
        pytest.skip("documents show curl, and there is none")
    folder, bucket = tmp_path_factory.mktemp("checkout"), boto3.resource("s3").Bucket(BUCKET)
    for name in ("examples", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(ROOT / "examples"))
        patch.setattr("rayfm.training.cluster.is_embedded", lambda: False)  # `rayfm deploy` would serve until Ctrl-C
        import made_up

        made_up.write("clicks", folder / "clicks-in-bucket", 500)
        for path in (folder / "clicks-in-bucket").rglob("*.parquet"):
            bucket.upload_file(str(path), f"clicks/{path.relative_to(folder / 'clicks-in-bucket')}")
        found, checkout = {}, Checkout(serve_url, BUCKET)
        for document in DOCUMENTS:
            session = {"__name__": "session"}
            wanted = [block for block in blocks(document) if block.language in RUN and not block.mark]
            found[document] = {block.text.splitlines()[0]: checkout.run(block, session) for block in wanted}
        yield found
    bucket.objects.all().delete()


def starting(texts, beginning):
    (text,) = [text for line, text in texts.items() if line.startswith(beginning)]
    return text


def numbers(pattern, text):
    return [float(number) for number in re.findall(pattern, text)]


def test_readme__trains_serves_and_scores(printed):
    texts = printed["README.md"]
    assert 0.8 < float(starting(texts, "import numpy").split()[0]) < 1
    commands = starting(texts, "python examples/made_up.py")
    assert 0.75 < numbers(r"\nauc +([\d.]+)", commands)[0] < 1
    assert re.search(r"^clicks +Completed ", commands, re.M)
    assert len(numbers(r'"score": ?([\d.]+)', starting(texts, "curl "))) == 1
    *log, first, second, third = starting(texts, "from rayfm.sagemaker").splitlines()
    assert any(line.endswith(" Completed - Training job completed") for line in log)
    assert all(0 <= float(score) <= 1 for score in (first, second, third))


def test_guides__come_to_what_they_promise(printed):
    texts = printed["examples/README.md"]
    assert numbers(r"test:rmse +([\d.]+)", starting(texts, "python examples/made_up.py ratings"))[0] < 0.8
    assert len(numbers(r"\b(\d+)\b", starting(texts, "import numpy").partition("]")[0])) == 5
    assert re.search(r"^status +Completed$", starting(texts, "rayfm train clicks/train"), re.M)
    assert len(re.findall(r'"uid": ?"new-[01]"', starting(texts, "rayfm transform"))) == 2
    (asked,), (again,) = (
        numbers(r"score['\"]: ?([\d.]+)", starting(texts, beginning)) for beginning in ("curl ", "import json")
    )
    assert asked == again


def test_example__moved_from_sagemaker_runs(printed):
    text = starting(printed["examples/README.md"], "python examples/moved_from_sagemaker.py")
    pairs = re.findall(r"rated ([\d.]+), predicted ([\d.]+)", text)
    assert len(pairs) == 5 and all(abs(float(rated) - float(predicted)) < 1.5 for rated, predicted in pairs)
    assert "400 rows of 1 files scored" in text


def test_example__batch_transform_writes_an_output_for_each_input(printed):
    text = starting(printed["examples/README.md"], "python examples/batch_transform.py")
    assert "1000 rows of 2 files scored" in text
    assert re.findall(r"scores/(\w+)\.parquet\.out: row new-\d+, advertisement \d+: [01]\.\d{3}\n", text) == [
        "monday",
        "tuesday",
    ]


def test_example__serving_with_boto3_answers(printed):
    text = starting(printed["examples/README.md"], "python examples/serve_with_boto3.py")
    assert len(numbers(r"score ([\d.]+), label [01]", text)) == 3


def test_guide_to_clusters__lists_the_jobs_of_the_bucket(printed):
    first, _ = printed["cluster/README.md"].values()
    assert re.search(r"^clicks +Completed ", first, re.M)
