"""Every block of code in the documents runs, or says why it does not; then its commands are at least parsed."""

import argparse
import re
import runpy
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from rayfm.cli import cli
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


@pytest.fixture
def checkout(ray_cluster, serve_url, bucket, tmp_path, monkeypatch):
    """A function that runs a block as if in a checkout, on the session's Ray, and returns what is printed.

    Where a document says BUCKET there is a bucket, with made-up clicks in it.
    """
    if shutil.which("curl") is None:
        pytest.skip("documents show curl, and there is none")
    for folder in ("examples", "cluster"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr("rayfm.training.cluster.is_embedded", lambda: False)  # `rayfm deploy` would serve until Ctrl-C

    import made_up

    made_up.write("clicks", tmp_path / "in-bucket", 500)
    for path in (tmp_path / "in-bucket").rglob("*.parquet"):
        bucket.upload_file(str(path), f"clicks/{path.relative_to(tmp_path / 'in-bucket')}")
    session = {"__name__": "session"}

    def command(line):
        parts = simple_commands(line)
        if len(parts) == 1 and parts[0][0] == "rayfm":
            result = CliRunner().invoke(cli, parts[0][1:], prog_name="rayfm")
            assert result.exit_code == 0, f"{line}\n{result.output}"
            print(result.output)
        elif len(parts) == 1 and re.fullmatch(rf"python {SCRIPT}", " ".join(parts[0][:2])):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", parts[0][1:])
                runpy.run_path(parts[0][1], run_name="__main__")
        else:
            shell = ["bash", "-euo", "pipefail", "-c", line.replace("curl ", "curl --silent --show-error --fail ")]
            print(subprocess.run(shell, check=True, capture_output=True, text=True).stdout)

    def run(block):
        text = block.text.replace("s3://BUCKET/", f"s3://{bucket.name}/").replace("http://127.0.0.1:8000", serve_url)
        if block.language == "python":
            exec(compile(text, block.place, "exec"), session)
        for line in block._replace(text=text).commands if block.language == "sh" else ():
            command(line)

    return run


def run_all(document, run, capsys):
    """Run what is to be run, in its order; return the printed texts by beginnings of their blocks."""
    printed = {}
    for block in blocks(document):
        if block.language in RUN and not block.mark:
            run(block)
            printed[block.text.splitlines()[0]] = capsys.readouterr().out
    return printed


def starting(printed, beginning):
    (text,) = [text for line, text in printed.items() if line.startswith(beginning)]
    return text


def numbers(pattern, text):
    return [float(number) for number in re.findall(pattern, text)]


def test_readme__runs(checkout, capsys):
    printed = run_all("README.md", checkout, capsys)
    assert 0.8 < float(starting(printed, "import numpy").split()[0]) <= 1
    commands = starting(printed, "python examples/made_up.py")
    assert 0.75 < numbers(r"\nauc +([\d.]+)", commands)[0] < 1
    assert re.search(r"^clicks +Completed ", commands, re.M)
    assert len(numbers(r'"score": ?([\d.]+)', starting(printed, "curl "))) == 1
    *log, first, second, third = starting(printed, "from rayfm.sagemaker").splitlines()
    assert any(line.endswith(" Completed - Training job completed") for line in log)
    assert all(0 <= float(score) <= 1 for score in (first, second, third))


def test_guides__run(checkout, capsys):
    printed = run_all("examples/README.md", checkout, capsys)
    assert numbers(r"test:rmse +([\d.]+)", starting(printed, "python examples/made_up.py ratings"))[0] < 0.8
    assert len(numbers(r"\b(\d+)\b", starting(printed, "import numpy").partition("]")[0])) == 5
    assert 0.75 < numbers(r"\nauc +([\d.]+)", starting(printed, "python examples/made_up.py clicks"))[0] < 1
    moved = starting(printed, "python examples/moved_from_sagemaker.py")
    pairs = re.findall(r"rated ([\d.]+), predicted ([\d.]+)", moved)
    assert len(pairs) == 5 and all(abs(float(rated) - float(predicted)) < 1.5 for rated, predicted in pairs)
    assert "400 rows of 1 files scored" in moved
    assert re.search(r"^status +Completed$", starting(printed, "rayfm train clicks/train"), re.M)
    assert len(re.findall(r'"uid": ?"new-[01]"', starting(printed, "rayfm transform"))) == 2
    assert "1000 rows of 2 files scored" in starting(printed, "python examples/batch_transform.py")
    (asked,), (again,) = (
        numbers(r"score['\"]: ?([\d.]+)", starting(printed, beginning)) for beginning in ("curl ", "import json")
    )
    assert asked == again
    assert len(numbers(r"score ([\d.]+), label [01]", starting(printed, "python examples/serve_with_boto3.py"))) == 3


def test_guide_to_clusters__runs(checkout, capsys):
    printed = run_all("cluster/README.md", checkout, capsys)
    assert len(printed) == 2
