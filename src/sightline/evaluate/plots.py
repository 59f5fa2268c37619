"""The drawings of a report, each of one data set: a title, an SVG, and in words what is to be seen."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sightline.evaluate.calibration import BINS
from sightline.evaluate.intervals import wilson
from sightline.evaluate.run import Evaluation
from sightline.images import printable_name
from sightline.page import COLOURS, LINES, drawing, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHAT = "a report with plots"
_INK, _MUTED = COLOURS["ink"], COLOURS["muted"]
_EXTREMES = 8  # classes at each end
_COLUMNS = 5  # of small plots
_FEW = 0.02  # of the images: with fewer answers, nothing can be said of them
_MANY = 10  # images, from which on a bin is drawn


class Drawing(NamedTuple):
    title: str
    svg: str
    seen: str


def colour_of(found: Evaluation, model: str) -> str:
    """The colour of a model in every drawing."""
    return LINES[list(found.models).index(model) % len(LINES)]


# ── each task ────────────────────────────────────────────────────────────────────────────────────────────────────────


def few_shot(found: Evaluation, data: str) -> Drawing | None:
    """Paper figure 6: what a few labelled images are worth beside none."""
    tables = _tables(found, data, "few-shot")
    if not tables:
        return None
    seen = []
    with drawing(4.2, 2.9, _WHAT) as figure:
        axes = figure.add_subplot()
        for model, table in tables.items():
            colour, curve = colour_of(found, model), np.array(table["curve"], float)
            axes.fill_between(table["shots"], curve[:, 1], curve[:, 2], color=colour, alpha=0.16, linewidth=0)
            axes.plot(table["shots"], curve[:, 0], "-o", color=colour, markersize=4, linewidth=1.8)
            value, low, high = table["zero_shot"]
            axes.axhline(value, color=colour, linestyle=(0, (4, 3)), linewidth=1.4)
            axes.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)
            rise = ", ".join(f"{n}: {share:.1%}" for n, share in zip(table["shots"], curve[:, 0], strict=True))
            seen.append(f"{model}, by labelled images of a class: {rise}; zero-shot {value:.1%}")
        axes.set_xscale("log", base=2)
        shots = max((table["shots"] for table in tables.values()), key=len)
        axes.set_xticks(shots, [str(n) for n in shots])
        _label(axes, "labelled images of each class", percent="y")
    return Drawing(data, svg(figure), "; ".join(seen))


def reliability(found: Evaluation, data: str) -> Drawing | None:
    """Guo et al. 2017, figure 1: accuracy over confidence, and how many images are how confident."""
    tables = _tables(found, data, "calibration")
    if not tables:
        return None
    seen = []
    with drawing(4.2, 3.9, _WHAT) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        for model, table in tables.items():
            filled = [each for each in table["bins"] if each[0]]
            bins = [each for each in filled if each[0] >= _MANY] or filled
            images, sure, right = (np.array(column, float) for column in zip(*bins, strict=True))
            colour, size = colour_of(found, model), 8 + 110 * images / images.sum()
            low, high = wilson(right, images)
            axes.plot(sure, right, color=colour, linewidth=1.2, alpha=0.5)
            axes.vlines(sure, low, high, color=colour, linewidth=1.2, alpha=0.5)
            axes.scatter(sure, right, s=size, color=colour, linewidths=0, clip_on=False, zorder=3)
            counts = np.array([each[0] for each in table["bins"]], float)
            edges = np.linspace(0, 1, BINS + 1)
            below.stairs(counts / counts.sum(), edges, color=colour, fill=len(tables) == 1, alpha=0.8)
            error = found.figures(model, data, "calibration")["calibration error"]["value"]
            seen.append(f"{model}: on average {error:.1%} between how sure it is and how often it is right")
        axes.set_ylim(0, 1)
        axes.set_xlim(0, 1)
        _label(axes, "", "right")
        _label(below, "probability of the best class", "images")
    return Drawing(data, svg(figure), "; ".join(seen))


def coverage(found: Evaluation, data: str) -> Drawing | None:
    """Accuracy where it answers, over how much it answers, and where the thresholds from training images land."""
    tables = {model: table for model, table in _tables(found, data, "abstaining").items() if "curve" in table}
    if not tables:
        return None
    seen = []
    with drawing(4.2, 3.1, _WHAT) as figure:
        axes = figure.add_subplot()
        lowest = 1.0
        for model, table in tables.items():
            colour, points = colour_of(found, model), np.array(table["curve"], float)
            points = points[points[:, 0] >= _FEW]
            axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.8)
            lowest = min(lowest, float(points[:, 1].min()))
            for error, _, share, right in table["thresholds"]:
                if right and share[0] >= _FEW:
                    axes.plot(share[0], right[0], "o", color=colour, markersize=5)
                    seen.append(f"{model}, meant to err in {error:.0%}: answers {share[0]:.0%}, {right[0]:.1%} right")
            seen.append(f"{model}: {points[-1, 1]:.1%} right if all are answered")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(max(0, lowest - 0.05), 1.01)
        _label(axes, "share of the images that it answers")
    return Drawing(data, svg(figure), "; ".join(seen))


def classes(found: Evaluation, data: str, task: str = "zero-shot") -> Drawing | None:
    """The classes that it is best and worst at, by the mean over the models."""
    tables = _tables(found, data, task)
    if not tables:
        return None
    names = next(iter(tables.values()))["classes"]
    shares = {model: _per_class(table) for model, table in tables.items()}
    mean = np.mean(list(shares.values()), axis=0)
    order = [int(i) for i in np.argsort(mean, kind="stable") if np.isfinite(mean[i])]
    shown = order if len(order) <= 2 * _EXTREMES else [*order[:_EXTREMES], *order[-_EXTREMES:]]
    with drawing(4.2, 0.5 + 0.2 * len(shown), _WHAT) as figure:
        axes = figure.add_subplot()
        height = 0.72 / len(tables)
        for number, (model, share) in enumerate(shares.items()):
            places = np.arange(len(shown)) + (number - (len(tables) - 1) / 2) * -height
            colour = colour_of(found, model)
            low, high = wilson(share[shown], np.array(tables[model]["images"], float)[shown])
            axes.barh(places, share[shown], height * 0.9, color=colour, alpha=0.45)
            axes.hlines(places, low, high, color=colour, linewidth=1.4)
            axes.plot(share[shown], places, "o", color=colour, markersize=3)
        if len(shown) < len(order):
            axes.axhline(_EXTREMES - 0.5, color=_MUTED, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(shown)), [printable_name(shortened(names[i])) for i in shown])
        axes.tick_params(axis="y", labelcolor=_INK, labelsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        _label(axes, "right", percent="x")
    ends = f"worst {_with_ties(names, mean, order[0])}, best {_with_ties(names, mean, order[-1])}"
    return Drawing(data, svg(figure), f"of {len(order)} classes: {ends}")


def corruptions(found: Evaluation, data: str) -> Drawing | None:
    """A small plot for each corruption: accuracy over severity, from none to five."""
    tables = _tables(found, data, "robustness")
    if not tables:
        return None
    kinds = list(next(iter(tables.values()))["zero-shot"]["kinds"])
    rows, seen = -(-len(kinds) // _COLUMNS), []
    with drawing(11, 1.95 * rows, _WHAT) as figure:
        grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, kind in zip(grid, kinds, strict=False):
            for model, table in tables.items():
                for whose, style in _HOW.items():
                    if whose in table:
                        shares = np.array([table[whose]["clean"], *table[whose]["kinds"][kind]], float)
                        colour, severities = colour_of(found, model), [0, *table["severities"]]
                        axes.plot(severities, shares[:, 0], linestyle=style, color=colour, linewidth=1.5)
                        axes.fill_between(severities, shares[:, 1], shares[:, 2], color=colour, alpha=0.1, linewidth=0)
            axes.set_title(kind.replace("_", " "), fontsize=10, loc="left", pad=3)
            axes.set_ylim(bottom=0)
            axes.set_xticks([0, 1, 2, 3, 4, 5])
            axes.yaxis.set_major_formatter(_percent)
        for axes in grid[len(kinds) :]:
            axes.set_visible(False)
        figure.supxlabel("severity, 0 as they are", color=_MUTED, fontsize=9, x=1, ha="right")
        for model, table in tables.items():
            said = [
                f"{whose} {table[whose]['clean'][0]:.1%} to {table[whose]['all'][0]:.1%}"
                for whose in _HOW
                if whose in table
            ]
            seen.append(f"{model}, from clean to the mean of all corruptions: {', '.join(said)}")
    return Drawing(data, svg(figure), "; ".join(seen))


# ── all data sets together ───────────────────────────────────────────────────────────────────────────────────────────


def effective(found: Evaluation) -> Drawing | None:
    """Taori et al. 2020: accuracy under shift over accuracy without; what lies higher than others is more robust."""
    points = [
        (model, data, whose, table[whose]["clean"], table[whose]["all"])
        for data in found.data
        for model, table in _tables(found, data, "robustness").items()
        for whose in _HOW
        if whose in table
    ]
    if not points:
        return None
    with drawing(6.2, 4.4, _WHAT) as figure:
        axes = figure.add_subplot()
        lowest = min(point[4][0] for point in points)
        highest = max(point[3][0] for point in points)
        line = np.linspace(max(0.005, lowest * 0.8), min(0.995, highest * 1.05), 50)
        axes.plot(line, line, color=_MUTED, linewidth=1, linestyle=":")
        for model, _, whose, clean, corrupted in points:
            colour, full = colour_of(found, model), whose == "zero-shot"
            low, high = np.array(corrupted[1:]) - corrupted[0]
            axes.errorbar(clean[0], corrupted[0], [[-low], [high]], color=colour, linewidth=1, alpha=0.6)
            axes.plot(
                clean[0], corrupted[0], "o", color=colour, markerfacecolor=colour if full else "none", markersize=7
            )
        names = {data: (clean[0], all_[0]) for _, data, whose, clean, all_ in points if whose == "zero-shot"}
        if len(names) > 1:
            _name(axes, names)
        axes.grid(True, axis="both")
        _label(axes, "accuracy on the images as they are", "mean accuracy on the corrupted images")
    seen = "; ".join(f"{m}, {d}, {w}: {clean[0]:.1%} to {all_[0]:.1%}" for m, d, w, clean, all_ in points)
    return Drawing("What corruption costs", svg(figure), seen)


def efficiency(found: Evaluation, accuracy: dict[str, float]) -> Drawing | None:
    """Zero-shot accuracy over features a second; area by parameters."""
    rows = {}
    for model in accuracy:
        figures = found.figures(model, "", "efficiency")
        if "images per second" in figures:
            rows[model] = figures
    if not rows:
        return None
    with drawing(6.2, 3.6, _WHAT) as figure:
        axes = figure.add_subplot()
        for model, figures in rows.items():
            rate, parameters = figures["images per second"], figures["image parameters"]["value"]
            area = 30 + 470 * parameters / max(each["image parameters"]["value"] for each in rows.values())
            axes.scatter(
                rate["value"], accuracy[model], s=area, color=colour_of(found, model), alpha=0.75, linewidths=0
            )
            axes.plot([rate["low"], rate["high"]], [accuracy[model]] * 2, color=colour_of(found, model), linewidth=1.2)
            if len(rows) == 1:
                _name(axes, {model: (rate["low"], accuracy[model])})
        axes.set_xscale("log")
        rates, heights = [each["images per second"]["value"] for each in rows.values()], [accuracy[m] for m in rows]
        axes.set_xlim(min(rates) / 2, max(rates) * 2)
        axes.set_ylim(max(0, min(heights) - 0.1), min(1, max(heights) + 0.1))
        axes.grid(True, axis="both")
        from matplotlib.ticker import FuncFormatter, LogLocator

        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _label(axes, "images a second", "zero-shot, mean of the data sets", percent="y")
    seen = "; ".join(
        f"{m}: {f['images per second']['value']:,.0f} a second, {accuracy[m]:.1%}" for m, f in rows.items()
    )
    return Drawing("Accuracy and speed", svg(figure), seen)


# ── what they share ──────────────────────────────────────────────────────────────────────────────────────────────────

_HOW: dict[str, Any] = {"zero-shot": "-", "probe": (0, (4, 3))}


def _tables(found: Evaluation, data: str, task: str) -> dict[str, dict[str, Any]]:
    """What was found of each model that was measured."""
    tables = ((model, found.table(model, data, task)) for model in found.models)
    return {model: table for model, table in tables if table is not None}


def _per_class(table: dict[str, Any]) -> np.ndarray:
    """The share that is right of each class, NaN of one without images."""
    with np.errstate(invalid="ignore"):
        return np.array(table["right"], float) / np.array(table["images"], float)


def _name(axes: "Axes", points: dict[str, tuple[float, float]]) -> None:
    """Names to the left of points, as probes lie to the right; one above another where they would overlap."""
    low, high = axes.get_ylim()
    height, last = (high - low) * 0.05, -np.inf
    for name, (x, y) in sorted(points.items(), key=lambda each: each[1][1]):
        last = max(y, last + height)
        said = printable_name(shortened(name))
        axes.annotate(said, (x, last), (-8, -3), textcoords="offset points", ha="right", fontsize=8, color=_MUTED)


def _with_ties(names: list[str], mean: np.ndarray, i: int) -> str:
    """A class, how many are as good, and how good that is."""
    others = int((mean == mean[i]).sum()) - 1
    return f"{names[i]}{f' and {others} more' if others else ''} {mean[i]:.0%}"


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g}%"


def _label(axes: "Axes", across: str, up: str = "", *, percent: str = "xy") -> None:
    """What the axes are of, and which of them count in per cent."""
    axes.set_xlabel(across, color=_MUTED, loc="right", fontsize=9)
    axes.set_ylabel(up, color=_MUTED, fontsize=9)
    for name in percent:
        getattr(axes, f"{name}axis").set_major_formatter(_percent)


def shortened(name: str, most: int = 28) -> str:
    """A name as there is room for: its beginning."""
    return name if len(name) <= most else name[: most - 1] + "…"
