"""The sections of a report, each of a task: its drawings, its tables, and how to read them."""

from collections.abc import Callable, Iterator
from typing import Any

from sightline.errors import InvalidArgumentError
from sightline.evaluate import plots
from sightline.evaluate.bias import GUIDANCE
from sightline.evaluate.cells import (
    SAME,
    brief,
    decimal,
    drawn,
    explained,
    gain,
    grouped,
    key,
    many,
    matrix,
    numbers,
    p_value,
    points,
    rate,
    share,
    shots,
    table,
    text,
    words,
)
from sightline.evaluate.comparisons import LEVEL, Comparison, best
from sightline.evaluate.folded import PROBES, corruption_kinds, sweeps
from sightline.evaluate.plots import Drawing
from sightline.evaluate.robustness import logit_fit, on_the_line
from sightline.evaluate.run import Evaluation
from sightline.evaluate.shifts import COMPARABLE, resnet_101
from sightline.evaluate.standing import CLASSIFIERS, published, taught
from sightline.page import LINES


def accuracy(found: Evaluation) -> str:
    """Accuracy of all: data sets and classifiers down, models across."""
    comparisons, rows = [Comparison(**row) for row in found.comparisons], []
    for data, about in found.data.items():
        for task, called in CLASSIFIERS.items():
            five = ("top-5",) if task == "zero-shot" or task in PROBES else ()
            said_of = f"<td>{text(called)}</td>"
            for name in dict.fromkeys(("top-1", *five, about["measure"])):
                figures = {model: found.figures(model, data, task).get(name) for model in found.models}
                if any(figures.values()):
                    winner = best(comparisons, data, task) if name == "top-1" else None
                    cells = numbers(share(figure, bold=model == winner) for model, figure in figures.items())
                    rows.append((data, said_of + words((name,)) + cells))
                    said_of = SAME
    said = "Each with its 95% interval over the measured images."
    if len(found.models) > 1:
        said += (
            f" Bold is better than every other model, at {LEVEL:.0%} after Holm’s correction, on the same images. "
            "Top-1 alone is compared: the other measures are never bold."
        )
    shown = table(("data set", "classifier", "measure"), found.models, grouped(rows))
    return explained(shown + sweeps(found), said + taught(found))


def differences(found: Evaluation) -> str:
    """Every two models on the same images."""
    rows = []
    for row in found.comparisons:
        first, second = text(row["first"]), text(row["second"])
        who = f"<b>{first}</b> over {second}" if row["adjusted"] < LEVEL else f"{first} over {second}"
        who = who if row["value"] else f"{first} and {second}, as often right"
        cells = numbers((gain(row), p_value(row["p_value"]), p_value(row["adjusted"])))
        rows.append((row["data"], f"<td>{CLASSIFIERS.get(row['task'], row['task'])}</td><td>{who}</td>{cells}"))
    made = "One comparison was" if len(rows) == 1 else f"{len(rows)} comparisons were"
    said = (
        f"In points of top-1 accuracy, on the same images, with 95% intervals. {made} made; p "
        f"after Holm holds for all of them together. Bold where that is below {LEVEL:g}; what is not bold may be "
        "chance."
    )
    columns = ("points of accuracy", "p", "p after Holm")
    return explained(table(("data set", "classifier", "which"), columns, grouped(rows)), said)


def few_shot(found: Evaluation) -> str:
    rows = []
    for data, model, figures, drawn_from in _each(found, "few-shot"):
        if equal := figures.get("shots that equal zero-shot"):
            rows.append((data, words((model,)) + numbers((shots(equal, drawn_from["shots"][-1]),))))
    said = (
        "A linear probe on a few labelled images of each class, beside zero-shot, which is given none (paper figures 6 "
        "and 7). The band of the curve goes from the worst of ten draws of those images to the best, its points are "
        "the means; the band of zero-shot is the 95% interval of the measured images."
    ) + taught(found)
    columns = ("images of each class that equal it",)
    marks = (("probe on labelled images", "line"), ("zero-shot, given words and no images", "dashed"))
    return explained(_drawn(found, plots.few_shot, marks) + table(("data set", "model"), columns, grouped(rows)), said)


def calibration(found: Evaluation) -> str:
    columns = ("calibration error", "error by chance alone", "mean confidence")
    rows = [
        (data, words((model,)) + numbers(share(figures.get(name)) for name in columns))
        for data, model, figures, _ in _each(found, "calibration")
    ]
    said = (
        "Zero-shot probabilities in fifteen bins; the larger a point, the more images it is of, and bins of fewer than "
        "ten are not drawn. Where points lie below the dotted line it is surer than it should be. By chance alone: "
        "the error that a model just as sure would show on as many images if each probability were exactly what it "
        "says, and where 95% of draws lie. What is not above that cannot be told from none, whatever its own interval "
        "says: that is of the measured error, with what chance has added to it."
    )
    marks = (("accuracy of a bin, with its 95% interval", "point"), ("right as often as sure", "dotted"))
    return explained(
        _drawn(found, plots.reliability, marks) + table(("data set", "model"), columns, grouped(rows)), said
    )


def abstaining(found: Evaluation) -> str:
    rows = []
    for data, model, figures, _ in _each(found, "abstaining"):
        cells = [share(figures.get("coverage at 5% error")), share(figures.get("accuracy at 5% error"))]
        rows.append((data, words((model,)) + numbers([*cells, decimal(figures.get("strangers AUROC"))])))
    said = (
        "If it answers only where it is surest. A point is a threshold chosen on training images, of whose answers 1, "
        "5, 10 or 20% are wrong there; it lies where the measured images put it. Where fewer than 2% "
        "of the images are answered nothing is drawn, neither curve nor point. Strangers: half of the class names, "
        "drawn by the seed, are left off the list; AUROC says how often an image of a listed class is surer than one "
        "of the others (0.5 is chance). Of ImageNet-O all images are the strangers, and those of ImageNet are not."
    )
    if starter := taught(found):
        said += f"{starter} Its thresholds are chosen on images that it knows, and tend to let more pass on new ones."
    columns = ("answered, meant to err in 5%", "of these right", "strangers, AUROC")
    marks = (("accuracy of the answers", "line"), ("threshold chosen on training images", "point"))
    return explained(_drawn(found, plots.coverage, marks) + table(("data set", "model"), columns, grouped(rows)), said)


def classes(found: Evaluation) -> str:
    said = (
        "Zero-shot. They are picked for being extreme: on other images most of them would lie nearer the middle. Of "
        "classes that tie for a place the first in the list is shown."
    )
    return explained(_drawn(found, plots.classes, (("right, with its 95% interval", "point"),)), said)


def confusion(found: Evaluation) -> str:
    parts = []
    for data, model, _, whole in _each(found, "zero-shot"):
        if whole["matrix"]["classes"] and sum(whole["right"]) < sum(whole["images"]):
            name = f"{data}, {model}" if len(found.models) > 1 else data
            names, images, shown = whole["classes"], whole["images"], whole["matrix"]
            some = [names[i] for i in shown["classes"]]
            grid = matrix(some, shown["images"], [images[i] for i in shown["classes"]])
            lines = [
                words((names[own], names[taken])) + numbers((str(count), share(_ends(*ends))))
                for own, taken, count, *ends in whole["confused"]
            ]
            worst = table(("class", "taken for"), ("images", "of its class"), lines[:8])
            parts.append(
                f"<figure><figcaption>{brief(name)}</figcaption><div class='scroll'>{grid}</div>{worst}</figure>"
            )
    said = (
        "Zero-shot, the classes with the surest confusions (of three images or more, by the lower ends of their "
        "intervals): images of the class at the left, in % of it, by the class that they are taken for. What a class "
        "is taken for beyond these is not shown."
    )
    return explained(f"<div class='wide'>{''.join(parts)}</div>" if parts else "", said)


def robustness(found: Evaluation) -> str:
    rows, images, lines = [], 0, {data: _probes_line(found, data) for data in found.data}
    for data, model, figures, whole in _each(found, "robustness"):
        images = max(images, whole["images"])
        for whose in ("zero-shot", "probe"):
            if clean := figures.get(f"{whose}, uncorrupted"):
                corrupted = figures[f"{whose}, corruptions"]
                kept = f"{corrupted['value'] / clean['value']:.0%}" if clean["value"] else "–"
                cells = [share(clean), share(corrupted), kept]
                cells.append(gain(figures.get("effective robustness over the probe")) if whose == "zero-shot" else "")
                if any(lines.values()):
                    cells.append(_over(lines[data], clean["value"], corrupted["value"]) if whose == "zero-shot" else "")
                rows.append((data, words((model, whose)) + numbers(cells)))
    said = (
        f"Ten corruptions in the manner of ImageNet-C, in five severities, of at most {images:,} measured images of "
        "each set, drawn by the seed. The probe was fitted to uncorrupted training images, and is the baseline of "
        "effective robustness (Taori et al. 2020), in points: over the probe of the same model it is how much less "
        "zero-shot loses than that, as of one baseline there is no line; over the probes of several models, how far "
        "it lies above the line through theirs on a logit scale, which few models make a rough one."
    )
    columns = ["as they are", "corrupted, mean of all", "kept", "over the probe"]
    columns += ["over the line of all probes"] if any(lines.values()) else []
    html = _drawn(found, plots.corruptions, (("zero-shot", "line"), ("probe", "dashed")), "whole")
    html += table(("data set", "model", "classifier"), columns, grouped(rows)) + corruption_kinds(found)
    marks = (("zero-shot", "point"), ("probe", "ring"), ("nothing lost", "dotted"))
    scatter = key(_lines(found), marks) + drawn([plots.effective(found)], "wide") if html else ""
    return explained(html + scatter, said)


def _probes_line(found: Evaluation, data: str) -> tuple[float, float] | None:
    """What accuracy under corruption is usual of the probes of several models; None of fewer than two."""
    figures = [found.figures(model, data, "robustness") for model in found.models]
    names = "probe, uncorrupted", "probe, corruptions"
    baselines = [(each[names[0]]["value"], each[names[1]]["value"]) for each in figures if names[0] in each]
    try:
        return logit_fit(baselines)
    except InvalidArgumentError:  # two of one accuracy, or one that is always right
        return None


def _over(line: tuple[float, float] | None, clean: float, corrupted: float) -> str:
    if line is None or not 0 < clean < 1:
        return "–"
    return points(corrupted - float(on_the_line(line, clean)))


def shifts(found: Evaluation) -> str:
    """Sets of ImageNet's classes beside ImageNet itself."""
    sets = [data for data, about in found.data.items() if about["of_imagenet"]]
    rows = []
    for data in sets if len(sets) > 1 else []:
        for model in found.models:
            figures = found.figures(model, data, "zero-shot")
            own, same = share(figures.get("top-1")), share(figures.get("imagenet top-1, same classes"))
            over = gain(figures.get("effective robustness over ResNet-101"))
            rows.append((data, words((model,)) + numbers((own, same, over))))
        theirs = resnet_101(data)
        if theirs is not None:
            rows.append((data, words(("ResNet-101",)) + numbers((f"{theirs:.1%}", "–", "–"))))
    said = (
        "Zero-shot on ImageNet and on sets that show its classes otherwise; nothing is fitted to any of them. A set of "
        "some of the classes is easier to tell apart than all: beside it stands ImageNet’s own, of the same classes. "
        "The ResNet-101 trained on ImageNet is the paper’s (figure 13). Over it: how many points less are lost from "
        "ImageNet’s 1,000 classes to the set than it loses. As of one baseline there is no line, this is the "
        "difference of the drops, and stands for effective robustness (Taori et al. 2020) best near its 76.2%; "
        f"more than {100 * COMPARABLE:.0f} points from that it is left out, as where the paper has no figure."
    )
    columns = ("top-1", "imagenet, same classes", "over ResNet-101")
    return explained(table(("data set", "model"), columns, grouped(rows)), said)


def retrieval(found: Evaluation) -> str:
    rows = []
    for data, model, figures, whole in _each(found, "retrieval"):
        for way in ("image-to-text", "text-to-image"):
            cells = numbers(share(figures.get(f"{way} recall@{k}")) for k in (1, 5, 10))
            of = f"{whole['images']:,} images, {whole['captions']:,} captions"
            rows.append((data, words((model, way.replace("-", " "), of)) + cells))
    said = "How often the right caption of an image, or the right image of a caption, is among the nearest 1, 5 or 10."
    return explained(
        table(("data set", "model", "way", "of"), [f"recall@{k}" for k in (1, 5, 10)], grouped(rows)), said
    )


def prompts(found: Evaluation) -> str:
    rows, lists = [], []
    for data, model, figures, whole in _each(found, "prompts"):
        cells = [share(figures.get(name)) for name in ("first chosen", "chosen templates", "all templates")]
        rows.append((data, words((model,)) + numbers([f"{len(whole['steps'])} of {whole['offered']}", *cells])))
        items = "".join(f"<li>{text(template)}</li>" for template, _ in whole["steps"])
        lists.append(f"<details><summary>{brief(data)}, {brief(model)}: which</summary><ol>{items}</ol></details>")
    said = (
        "Templates chosen one after another on training images, each for what it adds there; the accuracies are of the "
        "measured images, which had no part in it."
    )
    columns = ("chosen", "the first alone", "the chosen", "all")
    return explained(table(("data set", "model"), columns, grouped(rows)), said) + "".join(lists)


def bias(found: Evaluation) -> str:
    parts = []
    for data, model, figures, whole in _each(found, "bias"):
        lines = []
        for k, label in enumerate(whole["labels"]):
            ends = [
                _ends(whole["shares"][g][k], whole["low"][g][k], whole["high"][g][k])
                for g in range(len(whole["groups"]))
            ]
            lines.append(words((label,)) + numbers([*map(share, ends), share(figures.get(f"gap of {label}"))]))
        parts.append(
            f"<h3>{brief(data)}, {brief(model)}</h3>" + table(("label",), [*whole["groups"], "largest gap"], lines)
        )
    guidance = "".join(f"<li>{text(line)}</li>" for line in GUIDANCE)
    said = "How often each label is the best one in each group. Small groups have a gap by chance: it is never below 0."
    return explained("".join(parts), said) + (f"<ul>{guidance}</ul>" if parts else "")


def efficiency(found: Evaluation) -> str:
    lines, accuracies = [], _mean_accuracy(found)
    for model in found.models:
        if figures := found.figures(model, "", "efficiency"):
            counts = ("image parameters", "text parameters", "image FLOPs", "text FLOPs")
            cells = [many(figures[name]["value"]) if name in figures else "–" for name in counts]
            cells += [rate(figures.get(name)) for name in ("images per second", "texts per second")]
            cells.append(share({"value": accuracies[model]}) if model in accuracies else "–")
            lines.append(words((model,)) + numbers(cells))
    columns = (
        "image parameters",
        "text parameters",
        "FLOPs an image",
        "FLOPs a text",
        "images a second",
        "texts a second",
        "zero-shot accuracy",
    )
    said = (
        "Of the models alone, on this machine while this ran: reading and preparing images is not in it. A multiply "
        "and an add are two FLOPs. Accuracy is the mean of the data sets."
    )
    drawing = plots.efficiency(found, accuracies) if lines else None
    said += " Area in the drawing: parameters of the image tower." if drawing else ""
    shown = key(_lines(found)) + drawn([drawing], "wide") if drawing else ""
    return explained(shown + table(("model",), columns, lines), said)


SECTIONS: dict[str, tuple[str, Callable[[Evaluation], str]]] = {
    "accuracy": ("Accuracy", accuracy),
    "differences": ("Which model is better", differences),
    "published": ("Where published models stand", published),
    "few-shot": ("What a few labelled images are worth", few_shot),
    "calibration": ("Whether a probability means what it says", calibration),
    "abstaining": ("Answering only when sure", abstaining),
    "classes": ("Best and worst classes", classes),
    "confusion": ("What is taken for what", confusion),
    "robustness": ("Robustness", robustness),
    "shifts": ("Beside ImageNet", shifts),
    "retrieval": ("Retrieval", retrieval),
    "prompts": ("Which prompts help", prompts),
    "bias": ("On whom labels fall", bias),
    "efficiency": ("What it costs", efficiency),
}


def _each(found: Evaluation, task: str) -> Iterator[tuple[str, str, dict[str, dict[str, Any]], dict[str, Any]]]:
    """Data set, model, figures and table of each that was measured."""
    for data in found.data:
        for model in found.models:
            whole = found.table(model, data, task)
            if whole is not None:
                yield data, model, found.figures(model, data, task), whole


def _drawn(
    found: Evaluation,
    draw: Callable[[Evaluation, str], Drawing | None],
    marks: tuple[tuple[str, str], ...],
    kind: str = "narrow",
) -> str:
    """The drawings of the data sets that have one, under what their colours and marks stand for."""
    drawings = [drawing for data in found.data if (drawing := draw(found, data)) is not None]
    return key(_lines(found), marks) + drawn(drawings, kind) if drawings else ""


def _lines(found: Evaluation) -> dict[str, int]:
    """The number of each model's line colour."""
    return {model: 1 + LINES.index(plots.colour_of(found, model)) for model in found.models}


def _ends(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def _mean_accuracy(found: Evaluation) -> dict[str, float]:
    """Zero-shot top-1 of each model, the mean of the data sets."""
    means = {}
    for model in found.models:
        figures = [found.figures(model, data, "zero-shot").get("top-1") for data in found.data]
        values = [figure["value"] for figure in figures if figure]
        if values:
            means[model] = sum(values) / len(values)
    return means
