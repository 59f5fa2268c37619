"""Where the models that were measured stand among those whose figures somebody printed."""

from typing import Any

from sightline.evaluate.cells import explained, numbers, share, text
from sightline.evaluate.published import published_results
from sightline.evaluate.run import Evaluation
from sightline.hub import STARTER

CLASSIFIERS = {
    "zero-shot": "zero-shot",
    "probe": "linear probe",
    "probe-before-projection": "linear probe, before the projection",
    "k-nearest": "k nearest images",
}


def published(found: Evaluation) -> str:
    """The models that were measured among those whose figures somebody printed, the best first."""
    cards, sources = [], dict[str, None]()
    for data in found.data:
        for task, theirs in (("zero-shot", "zero-shot"), ("probe-before-projection", "linear-probe")):
            printed = [each for each in published_results(data_set=data) if each.task == theirs]
            for measure in dict.fromkeys(each.measure for each in printed):
                ours = {model: found.figures(model, data, task).get(measure) for model in found.models}
                known = {each.model: each for each in reversed(printed) if each.measure == measure}
                standing = [(model, figure, True) for model, figure in ours.items() if figure]
                if standing:
                    standing += [(model, {"value": each.value}, False) for model, each in known.items()]
                    sources |= dict.fromkeys(each.source for each in known.values())
                    standing.sort(key=lambda each: -each[1]["value"])
                    cards.append(_standing(f"{data}, {CLASSIFIERS[task]}, {measure}", standing))
    said = (
        "The models that were measured among published ones. Published figures are of whole test sets, with the class "
        "names, prompts and preparation of whoever measured, and without intervals: a point more or less says little."
        f"{taught(found)} From: "
    ) + "; ".join(sources)
    return explained(f"<div class='narrow'>{''.join(cards)}</div>" if cards else "", said)


def taught(found: Evaluation) -> str:
    """What must be said beside the starter's figures."""
    if not any(about["from"] == STARTER for about in found.models.values()):
        return ""
    return (
        " The starter was taught the names of CIFAR-10, CIFAR-100, Tiny ImageNet and Caltech-101 on their training "
        "images: there its zero-shot figures are supervised accuracy, by way of words."
    )


def _standing(title: str, standing: list[tuple[str, dict[str, Any], bool]]) -> str:
    lines = []
    for name, figure, ours in standing:
        who = f"<b>{text(name)}</b>" if ours else text(name)
        bar = f"<span{' class=ours' if ours else ''} style='width:{100 * figure['value']:.1f}%'></span>"
        lines.append(f"<tr><td>{who}</td><td class='bar'>{bar}</td>{numbers((share(figure),))}</tr>")
    return f"<figure><figcaption>{text(title)}</figcaption><table class='dense'>{''.join(lines)}</table></figure>"
