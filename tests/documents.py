"""The blocks of code in the documents, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

from rayfm.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "cluster/README.md")

_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_OPERATORS = frozenset("();<>|&")


class Block(NamedTuple):
    """A block of code; `mark` is the comment in the line before it, empty where there is none."""

    document: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self):
        return f"{self.document}:{self.line}"

    @property
    def commands(self):
        """The lines of a shell block, those that are continued joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(document):
    text = (ROOT / document).read_text()
    return [
        Block(document, text.count("\n", 0, match.start("text")), match["language"], match["text"], match["mark"] or "")
        for match in _BLOCK.finditer(text)
    ]


def simple_commands(line):
    """The commands that operators of the shell part, as lists of words; redirections are left out.

    >>> simple_commands("ray start >log && rayfm train 'a b'  # trains")
    [['ray', 'start'], ['rayfm', 'train', 'a b']]
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, target_follows = [[]], False
    for word in lexer:
        if not set(word) <= _OPERATORS:
            if not target_follows:
                found[-1].append(word)
            target_follows = False
        elif ">" in word:
            target_follows = True
        else:
            found.append([])
    return [words for words in found if words]


def rayfm_commands(line):
    """The arguments of each `rayfm` in a line, also of one that another command is given.

    >>> rayfm_commands("ray exec c.yaml 'rayfm jobs list' && ray job submit -- rayfm report clicks")
    [['jobs', 'list'], ['report', 'clicks']]
    """
    found = []
    for words in simple_commands(line):
        for place, word in enumerate(words):
            if word == "rayfm" and (place == 0 or words[place - 1] == "--"):
                found.append(words[place + 1 :])
            if word.startswith("rayfm "):
                found += rayfm_commands(word)
    return found


def parse(arguments):
    """Parse the arguments of `rayfm` as it does.

    Raises
    ------
    click.UsageError
        If there is no such command or option, or something is missing.
    """
    command, context = cli, None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        _, command, arguments = command.resolve_command(context, list(arguments))
    command.make_context(command.name, list(arguments), parent=context)
