"""Numbers, tables and drawings as HTML."""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from sightline.evaluate.plots import Drawing, shortened
from sightline.images import printable_name

Figure = Mapping[str, Any]  # a row of results: value, low and high
SAME = "<td class='same'></td>"  # what stands above
_BRIGHT = 0.72  # of a matrix's colour; from there on black is read better on it, where the page is dark


def text(said: str) -> str:
    """As HTML, on one line; what cannot be seen as its escape."""
    return escape(printable_name(said))


def brief(name: str, most: int = 48) -> str:
    """A name as HTML; of a long one the beginning, and the whole where one points."""
    short = shortened(name, most)
    return text(name) if short == name else f"<span title='{text(name)}'>{text(short)}</span>"


def share(figure: Figure | None, *, bold: bool = False) -> str:
    """A share as per cent, with its interval."""
    if figure is None or figure["value"] is None:
        return "–"
    value = f"{figure['value']:.1%}"
    ends = "" if figure.get("low") is None else f" <small>{100 * figure['low']:.1f}–{100 * figure['high']:.1f}</small>"
    return (f"<b>{value}</b>" if bold else value) + ends


def decimal(figure: Figure | None) -> str:
    """A number between 0 and 1 that is no share, with its interval."""
    if figure is None or figure["value"] is None:
        return "–"
    ends = "" if figure.get("low") is None else f" <small>{figure['low']:.3f}–{figure['high']:.3f}</small>"
    return f"{figure['value']:.3f}{ends}"


def shots(figure: Figure, most: int) -> str:
    """How many labelled images of a class, of which at most so many were tried."""

    def said(value: float | None) -> str:
        return f"over {most}" if value is None else "under 1" if value < 1 else f"{value:.1f}"

    low, high = said(figure["low"]), said(figure["high"])
    ends = "" if low == high else f" <small>{low} to {high}</small>"
    return said(figure["value"]) + ends


def points(value: float) -> str:
    """A difference of shares, in per cent points."""
    said = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if said[1:] == "0.0" else said


def gain(figure: Figure | None) -> str:
    """A difference of shares, with its interval."""
    if figure is None:
        return "–"
    return f"{points(figure['value'])} <small>{points(figure['low'])} to {points(figure['high'])}</small>"


def p_value(value: float) -> str:
    if value < 0.0001:
        return "&lt; 0.0001"
    return f"{value:.2g}" if value >= 0.001 else f"{value:.4f}"


def many(value: float | None) -> str:
    """A large number to three digits: 151M."""
    if not value:
        return "–"
    power = min(4, int(math.log10(value)) // 3)
    return f"{value / 1000**power:.3g} {' kMGT'[power]}".rstrip()


def rate(figure: Figure | None) -> str:
    """Of a second, with where most of the batches lie."""
    if figure is None:
        return "–"
    return f"{figure['value']:,.0f} <small>{figure['low']:,.0f}–{figure['high']:,.0f}</small>"


def numbers(cells: Iterable[str]) -> str:
    """Cells of a table, to the right."""
    return "".join(f"<td class='n'>{cell}</td>" for cell in cells)


def words(cells: Iterable[str]) -> str:
    """Cells of a table, of text."""
    return "".join(f"<td>{brief(cell)}</td>" for cell in cells)


def table(words: Iterable[str], numbers: Iterable[str], lines: Iterable[str]) -> str:
    """A table of lines of cells, under the headings of its columns; nothing without lines."""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    head = "".join(f"<th scope='col'>{brief(each)}</th>" for each in words)
    head += "".join(f"<th scope='col' class='n'>{brief(each)}</th>" for each in numbers)
    if not body:
        return ""
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def grouped(rows: list[tuple[str, str]]) -> list[str]:
    """Lines with what each is of before it, which stands at the first of its group alone."""
    before = [None, *(name for name, _ in rows)]
    return [
        (f"<td class='of'>{brief(name)}</td>" if name != last else SAME) + cells
        for (name, cells), last in zip(rows, before, strict=False)
    ]


def note(said: str) -> str:
    return f"<p class='note'>{text(said)}</p>"


def explained(html: str, said: str) -> str:
    """A section's HTML and how to read it; nothing without the first."""
    return html + note(said) if html else ""


def drawn(drawings: Iterable[Drawing | None], kind: str = "narrow") -> str:
    """Drawings side by side: "narrow", "wide" or "whole"."""
    figures = [_figure(each) for each in drawings if each is not None]
    few = " two" if kind == "narrow" and len(figures) in (1, 2, 4) else ""  # what three columns would leave gaps for
    return f"<div class='{kind}{few}'>{''.join(figures)}</div>" if figures else ""


def key(models: Mapping[str, int], marks: Iterable[tuple[str, str]] = ()) -> str:
    """What colours and marks stand for: each model with the number of its line, where there are several, and each mark.

    A mark is "line", "dashed", "dotted", "point" or "ring".
    """
    shown = [(name, f"--line-{number}", "block") for name, number in models.items()] if len(models) > 1 else []
    own = f"--line-{next(iter(models.values()))}" if len(models) == 1 else "--ink"
    shown += [(name, "--muted" if mark == "dotted" else own, mark) for name, mark in marks]
    items = "".join(
        f"<li><i class='{mark}' style='color:var({colour})'></i>{brief(name)}</li>" for name, colour, mark in shown
    )
    return f"<ul class='key'>{items}</ul>" if items else ""


def _figure(drawing: Drawing) -> str:
    caption = f"<figcaption>{brief(drawing.title)}</figcaption>"
    return f'<figure>{caption}<div role="img" aria-label="{text(drawing.seen)}">{drawing.svg}</div></figure>'


def matrix(classes: list[str], images: list[list[int]], of_class: list[int]) -> str:
    """A confusion matrix, each row in per cent of the images of its class, the darker the more."""
    head = "".join(f"<th scope='col'><span>{brief(name, 28)}</span></th>" for name in classes)
    lines = []
    for i, name in enumerate(classes):
        cells = []
        for j, count in enumerate(images[i]):
            part = count / of_class[i] if of_class[i] else 0.0
            kind = " ".join(["right"] * (i == j) + ["bright"] * (part >= _BRIGHT))
            said = f"{100 * part:.0f}" if part >= 0.005 else ""
            cells.append(f"<td class='{kind}' style='--part:{100 * part:.0f}%'>{said}</td>")
        lines.append(f"<tr><th scope='row'>{brief(name, 28)}</th>{''.join(cells)}</tr>")
    return f"<table class='matrix'><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
