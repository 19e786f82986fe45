"""Plots as SVG that is part of a page: its text is the page's, and its colours follow the page's light or dark.

Matplotlib draws with stand-ins for the colours of `ROLES`, which become the page's CSS variables of these names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROLES = ("ink", "faint", "grid", "card", "train", "validation", "test", "zero", "one")
COLOURS = {role: f"#ab{number:02d}cd" for number, role in enumerate(ROLES)}
"""What stands for them in a drawing."""

WIDTH, HEIGHT = 5.4, 3.1
"""Inches, of 72 units of the drawing each; it is as wide as the page lets it be."""


@dataclass
class Plot:
    """A plot under way, and what is said of it.

    Attributes
    ----------
    title
        What it shows.
    axes
        To draw in.
    caption
        How it is to be read, in a sentence or two.
    summary
        What is to be seen in it, for those who do not see it.
    header, rows
        Its numbers as a table.
    drawing
        What is in its SVG, and the SVG's view box, once it is finished.
    """

    title: str
    axes: Axes
    caption: str = ""
    summary: str = ""
    header: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    drawing: tuple[str, str] = ("", "")

    @property
    def svg(self) -> Markup:
        """The plot as an element of an HTML page, with title and summary for those who do not see it."""
        content, view_box = self.drawing  # of numbers and our own words
        start = f'<svg {view_box} role="img" aria-label="{escape(f"{self.title}. {self.summary}")}">'
        return Markup(start + content)


@contextmanager
def plot(title: str, *, width: float = WIDTH, height: float = HEIGHT) -> Iterator[Plot]:
    """Draw a plot; it has its SVG when the block ends."""
    with matplotlib.rc_context(_style(title)):
        figure = Figure(figsize=(width, height), layout="constrained")
        under_way = Plot(title, figure.subplots())
        yield under_way
        under_way.drawing = _drawing(figure)


def _style(title: str) -> Any:
    """Return settings by name; versions of Matplotlib differ in the type that they want for them."""
    ink, faint, grid = COLOURS["ink"], COLOURS["faint"], COLOURS["grid"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 9,
        "text.parse_math": False,
        "text.color": ink,
        "axes.edgecolor": grid,
        "axes.labelcolor": faint,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": faint,
        "ytick.labelcolor": faint,
        "figure.facecolor": "none",
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }


def _drawing(figure: Figure) -> tuple[str, str]:
    """Return what follows the tag of the figure's SVG, and its view box."""
    file = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)  # whose `print_figure` would draw twice
    canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # its style would be the whole page's
    svg = re.sub(r"<!--.*?-->\s*|<g id=\"[^\"]*\">", lambda found: "<g>" if found[0].startswith("<g") else "", svg)
    svg = re.sub(r"#ab(\d\d)cd", lambda found: f"var(--{ROLES[int(found[1])]})", svg)
    start, _, content = svg.partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', start)
    return content.strip(), view_box
