"""matplotlib's SVG made fit for a page: it follows light and dark mode, and has a text instead.

Colours are CSS variables. matplotlib knows none, so everything is drawn in stand-in colours, which
are replaced in the text of the SVG. No date, no random ids: the same figure gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bench.quantities import Ratio, Spread
from bench.report.format import number
from bench.schema import Report
from prunecomp.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: CSS variable: colour on light paper, colour on dark paper. The base model has `series-0`. The
#: others are Okabe and Ito's colours, darkened or lightened until they stand out from the paper.
COLOURS = {
    "ink": ("#1b1f24", "#e6e9ee"),
    "grid": ("#dfe3e8", "#333a44"),
    "paper": ("#ffffff", "#15181d"),
    "series-0": ("#4b5563", "#b9c0ca"),
    "series-1": ("#0072b2", "#56b4e9"),
    "series-2": ("#c74f00", "#ff9a4d"),
    "series-3": ("#00805e", "#3ccfa2"),
    "series-4": ("#a4367c", "#e592c4"),
    "series-5": ("#8a6d00", "#f0e442"),
    "series-6": ("#5b4bc4", "#a99bff"),
    "series-7": ("#8c510a", "#d8a25b"),
}
_STAND_INS = {name: f"#0101{number:02x}" for number, name in enumerate(COLOURS, start=1)}
#: matplotlib's name of a marker, and the character that shows it in a line of text.
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
#: Points; what is drawn is as wide as a phone's screen, so that text keeps its size there.
SIZE = (384.0, 268.0)
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "prunecomp", "text.parse_math": False,
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.8,
    "text.color": _STAND_INS["ink"], "axes.labelcolor": _STAND_INS["ink"],
    "axes.edgecolor": _STAND_INS["ink"], "xtick.color": _STAND_INS["ink"],
    "ytick.color": _STAND_INS["ink"], "grid.color": _STAND_INS["grid"], "lines.linewidth": 1.8,
    "lines.markersize": 5.5, "legend.frameon": False, "legend.fontsize": 9.5,
    "legend.handlelength": 2.2, "axes.unicode_minus": False,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawing for a page.

    Attributes:
        name: unique in a report; file name and prefix of ids.
        title: what it shows, as drawn above it.
        alt: the same for those who cannot see it, with the figures.
        svg: one element, whose colours are the page's variables.
    """

    name: str
    title: str
    alt: str
    svg: str

    def standalone(self) -> str:
        """A file of its own, which follows the viewer's light or dark mode."""
        style = f"<style>{variables('svg')} svg{{background:var(--paper)}}</style>"
        head, _, rest = self.svg.partition(">")
        width, height = (round(1.6 * s) for s in SIZE)
        size = f' width="{width}" height="{height}"'
        return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{size}>{style}{rest}\n'


def variables(selector: str) -> str:
    """CSS that sets all colours: for light mode, for dark mode, and for paper."""
    light, dark = (
        f"{selector}{{" + ";".join(f"--{n}:{c[place]}" for n, c in COLOURS.items()) + "}"
        for place in (0, 1)
    )
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}"


def colour(name: str) -> str:
    """What to draw with, so that the page's variable `name` colours it."""
    return _STAND_INS[name]


def series(number: int) -> dict[str, str]:
    """Colour and marker of the n-th model; 0 is the base. Beyond seven the markers tell."""
    place = 0 if number == 0 else 1 + (number - 1) % 7
    marker = MARKERS[0 if number == 0 else (number + (number - 1) // 7) % len(MARKERS)][0]
    return {"color": colour(f"series-{place}"), "marker": marker}


def glyph(number: int) -> tuple[str, str]:
    """The same for HTML: name of the variable, and a character like the marker."""
    style = series(number)
    name = next(name for name, stand_in in _STAND_INS.items() if stand_in == style["color"])
    return name, dict(MARKERS)[style["marker"]]


class Panel:
    """One pair of axes: draw on `axes`, then call `finish`."""

    def __init__(self, figure: Figure, title: str) -> None:
        self.axes: Axes = figure.add_subplot()
        self.title, self._figure = title, figure
        figure.suptitle(_wrapped(title), x=0.01, ha="left", fontsize=11.5, fontweight="bold")

    def legend(self, columns: int = 2) -> None:
        """Above the axes, where it covers nothing."""
        self.axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2,
            columnspacing=1.2,
        )  # fmt: skip

    def finish(self, name: str, alt: str) -> Plot:
        text = io.StringIO()
        # Left on, the layout would draw everything once more.
        self._figure.get_layout_engine().execute(self._figure)
        self._figure.set_layout_engine("none")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        return Plot(name, self.title, alt, _for_page(text.getvalue(), name, alt))


@contextlib.contextmanager
def panel(title: str, xlabel: str, ylabel: str, *, height: float = SIZE[1]) -> Iterator[Panel]:
    """Yields empty axes in the house style; what the user has set for matplotlib plays no part.

    Args:
        height: points.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib; install it with `pip install prunecomp[bench]`"
        ) from error
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with mpl.rc_context({**defaults, **_STYLE}):
        figure = Figure(figsize=(SIZE[0] / 72, height / 72), layout="constrained")
        new = Panel(figure, title)
        new.axes.set_xlabel(xlabel)
        new.axes.set_ylabel(ylabel)
        yield new


def tick_label(value: float) -> str:
    """Three significant digits at most; whole numbers in full."""
    if value == round(value):
        return f"{value:,.0f}"
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain_ticks(axis, values: Sequence[float] | None = None) -> None:
    """Numbers as they are, also on a logarithmic axis; at `values` only, where they are given."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
    if values is not None:
        axis.set_major_locator(FixedLocator(list(values)))
        axis.set_minor_locator(NullLocator())


def logarithmic(axis, values: Sequence[float], *, beyond: float = 20.0) -> None:
    """A logarithmic axis where `values`, all positive, span more than `beyond` to one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values and min(values) > 0 and max(values) > beyond * min(values):
        axis._set_axes_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_minor_formatter(NullFormatter())
        plain_ticks(axis)


def whole_numbers(axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, 56))


def _for_page(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for variable, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} role="img" aria-label="{escape(alt)}" stroke-linejoin="round">'
    )
    body = svg[svg.index(">") + 1 :]
    return head + re.sub(r"\n\s*", "\n", body).strip()


def numbers(report: Report) -> dict[str, int]:
    """Colour number by model id: 0 is the base."""
    pruned = [m.id for m in report.models if m.role != "base"]
    base = [m.id for m in report.models if m.role == "base"]
    return {**dict.fromkeys(base, 0), **{model: n for n, model in enumerate(pruned, start=1)}}


def slug(text: str) -> str:
    """`text` as an id in HTML; different texts give different ids."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c == "-") else f"_{ord(c):x}_" for c in text
    )


def error_bar(value: Ratio | Spread, middle: float) -> list[list[float]]:
    """Distances from the middle down and up, as matplotlib wants them."""
    return [[max(middle - value.low, 0)], [max(value.high - middle, 0)]]
