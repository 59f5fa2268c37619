"""The format for people: one image a row, its best label first.

Rows are aligned a batch at a time, so that the first appear at once and any number fits in memory. Nothing is cut off:
on a terminal a row that is too long goes on below, under its labels; elsewhere a row is always one line of plain text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from sightline.cli.output import Ranked

if TYPE_CHECKING:
    from rich.console import Console

GAP = "  "
WIDEST_LABEL = 30  # columns are not made wider than this for one long label, which pushes the rest aside
BAR = 10

Span = tuple[str, str]  # a text and its style


class TableWriter:
    """Rows of a path, the best label with a bar, and the labels after it.

    Args:
        file: where plain rows go.
        labels: all labels, whose widest sets the columns.
        rows_at_once: how many rows are aligned with each other.
        console: the terminal, if the table goes to one; then `file` is left alone.
    """

    def __init__(self, file: BinaryIO, labels: Sequence[str], rows_at_once: int, console: "Console | None" = None):
        self._file = file
        self._console = console
        self._rows_at_once = rows_at_once
        self._rows: list[tuple[str, Ranked]] = []
        self._path_width = 0
        self._label_width = min(WIDEST_LABEL, max(map(_width, labels)))

    def write(self, path: str, ranked: Ranked) -> None:
        self._rows.append((_shown(path), ranked))
        if len(self._rows) >= self._rows_at_once:
            self._print_rows()

    def fail(self, path: str, reason: str) -> None:
        pass

    def close(self) -> None:
        self._print_rows()

    def _print_rows(self) -> None:
        widest = self._console.width // 2 if self._console else 60
        widths = [width for path, _ in self._rows if (width := _width(path)) <= widest]
        self._path_width = max(self._path_width, *widths, 0)
        for path, ranked in self._rows:
            if self._console:
                self._print_styled(self._console, path, ranked)
            else:
                cells = [text for cell in self._cells(ranked, bar=None) for text, _ in cell]
                line = _padded(path, self._path_width) + "".join(cells)
                self._file.write(f"{line.rstrip()}\n".encode())
        self._rows.clear()
        self._file.flush()

    def _print_styled(self, console: "Console", path: str, ranked: Ranked) -> None:
        from rich.text import Text

        bar = _ascii_bar if console.options.ascii_only else _block_bar
        start = _padded(path, self._path_width)
        if _width(path) > self._path_width:
            console.print(Text(path), soft_wrap=True)
            start = " " * self._path_width
        for spans in _wrapped(self._cells(ranked, bar), console.width - self._path_width):
            console.print(Text.assemble(start, *spans), soft_wrap=True)
            start = " " * self._path_width

    def _cells(self, ranked: Ranked, bar: Callable[[float], str] | None) -> Iterator[list[Span]]:
        for n, (label, probability) in enumerate(ranked):
            name, percent = _padded(_shown(label), self._label_width), f"{probability:7.1%}"
            if n > 0:
                yield [(f"{GAP}{name}{percent}", "dim")]
            elif bar:
                yield [(f"{GAP}{name}{percent} ", "bold"), (bar(probability), "green")]
            else:
                yield [(f"{GAP}{name}{percent}", "bold")]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of plain text whose columns are as wide as their widest cell."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return [GAP.join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrapped(cells: Iterable[list[Span]], room: int) -> Iterator[list[Span]]:
    """The cells in lines of at most that width; a cell that is wider has a line for itself."""
    line: list[Span] = []
    used = 0
    for cell in cells:
        width = sum(_width(text) for text, _ in cell)
        if line and used + width > room:
            yield line
            line, used = [*cell, (" " * (BAR + 1), "")], BAR + 1  # where the first line has its bar
        else:
            line += cell
        used += width
    yield line


def _block_bar(probability: float) -> str:
    whole, eighths = divmod(round(probability * BAR * 8), 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[eighths : eighths + 1]).ljust(BAR)[:BAR]


def _ascii_bar(probability: float) -> str:
    return ("#" * round(probability * BAR)).ljust(BAR)


def _shown(text: str) -> str:
    from sightline.images import printable_name

    return printable_name(text)


def _width(text: str) -> int:
    """Terminal columns: a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
