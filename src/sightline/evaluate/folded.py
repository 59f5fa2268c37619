"""What a report keeps folded until somebody asks: how strong each probe is, and accuracy under each corruption."""

from collections.abc import Iterable, Iterator
from typing import Any

from sightline.evaluate.cells import brief, numbers, share, text, words
from sightline.evaluate.run import Evaluation

PROBES = {"probe": "", "probe-before-projection": "before the projection"}
CLASSIFIERS = ("zero-shot", "probe")


def sweeps(found: Evaluation) -> str:
    """The strength C of each probe, and how it did with the others that were tried."""
    cards = []
    for data in found.data:
        for task, which in PROBES.items():
            for model in found.models:
                if (whole := found.table(model, data, task)) is not None:
                    of = [data, which, model if len(found.models) > 1 else ""]
                    title = brief(", ".join(filter(None, of))) + f"<b>C = {_strength(whole['C'])}</b>"
                    cards.append(_card(title, ("C", "right"), _sweep(whole)))
    said = (
        "How the strength C of each linear probe was chosen (the larger, the less its weights are held back): accuracy "
        "on training images set aside for it"
    )
    return _folded(said, "narrow", cards)


def corruption_kinds(found: Evaluation) -> str:
    """Accuracy under each corruption, the mean over its severities."""
    cards = []
    for data in found.data:
        tables = {model: whole for model in found.models if (whole := found.table(model, data, "robustness"))}
        columns = [(model, whose) for model, whole in tables.items() for whose in CLASSIFIERS if whose in whole]
        if not columns:
            continue
        lines = []
        for kind in next(iter(tables.values()))["zero-shot"]["kinds"]:
            figures = [found.figures(model, data, "robustness").get(f"{whose}, {kind}") for model, whose in columns]
            lines.append(words((kind.replace("_", " "),)) + numbers(map(share, figures)))
        heads = [whose if len(tables) == 1 else f"{whose}, {model}" for model, whose in columns]
        cards.append(_card(brief(data), ("corruption", *heads), lines))
    return _folded("Accuracy under each corruption, the mean of its five severities", "wide", cards)


def _sweep(whole: dict[str, Any]) -> Iterator[str]:
    """A line for each value that was tried; the one that was taken is bold."""
    for C, accuracy in whole["sweep"]:
        bold = whole["C"] == C
        value = f"<b>{_strength(C)}</b>" if bold else _strength(C)
        yield f"<td>{value}</td>{numbers((share({'value': accuracy}, bold=bold),))}"


def _strength(C: float) -> str:
    return f"{C:,.0f}" if C >= 100 else f"{C:.3g}"


def _card(title: str, columns: Iterable[str], lines: Iterable[str]) -> str:
    """A small table: a word in each line, and numbers. The title is HTML."""
    first, *rest = columns
    head = f"<th scope='col'>{text(first)}</th>" + "".join(
        f"<th scope='col' class='n'>{brief(each)}</th>" for each in rest
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table class='dense'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    return f"<figure><figcaption>{title}</figcaption>{table}</figure>"


def _folded(said: str, kind: str, cards: list[str]) -> str:
    if not cards:
        return ""
    return f"<details><summary>{text(said)}</summary><div class='{kind}'>{''.join(cards)}</div></details>"
