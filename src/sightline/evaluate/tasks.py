"""What `sightline evaluate` can measure: one table of tasks, each a function of a model on a data set.

What a task chooses (a probe's strength, a threshold, templates) it chooses on training images. The measured images
decide nothing.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sightline.errors import DataError, ImageError
from sightline.evaluate.abstaining import abstention, auroc, coverage_curve, threshold_at_error
from sightline.evaluate.bias import label_shares
from sightline.evaluate.calibration import calibration_error, reliability
from sightline.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sightline.evaluate.data_sets import DataSet
from sightline.evaluate.efficiency import measure_efficiency
from sightline.evaluate.features import ImageFeatures
from sightline.evaluate.few_shot import SHOTS, few_shot_accuracy
from sightline.evaluate.found import Found, check_taught, classified, or_none, share, some, untaught
from sightline.evaluate.intervals import Result, of_mean
from sightline.evaluate.k_nearest import k_nearest_votes
from sightline.evaluate.probe import probe_scores
from sightline.evaluate.prompts import greedy_templates, template_features
from sightline.evaluate.retrieval import retrieval_recall
from sightline.evaluate.robustness import corruption_accuracy
from sightline.evaluate.shifts import beside, strangers_to_imagenet
from sightline.evaluate.subject import Settings, Subject
from sightline.images import read_image
from sightline.linear_probe import LinearProbe
from sightline.templates import fill, template_set
from sightline.zero_shot import class_features

if TYPE_CHECKING:
    from PIL.Image import Image

    from sightline.evaluate.labelled import LabelledImages

ERRORS = (0.01, 0.05, 0.10, 0.20)  # at most this share of the answers may be wrong, where it abstains
MOST_CORRUPTED = 1000  # images: of each, fifty pictures are made and encoded
DRAWS = 10  # of shots
_K = 20
_CHOSEN_ON = 10_000  # training images, where templates are tried on them one after another
_TIMED = 32  # images, in a batch
_POINTS = 200  # of a curve


class Task(NamedTuple):
    """Something to measure.

    Attributes:
        lacking: says why it cannot be measured on a data set; nothing where it can.
        by_default: whether it is measured when no task is named.
        of_model: whether it is of the model alone, and measured once for all data sets.
        learns: whether training images have a part in it.
    """

    measure: Callable[[Subject], Found]
    lacking: Callable[[DataSet, Settings], str | None]
    by_default: bool = True
    of_model: bool = False
    learns: bool = True


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def zero_shot(subject: Subject) -> Found:
    scores = subject.cosines(subject.features.features)
    templates = {"templates": subject.templates.name, "template_count": len(subject.templates.templates)}
    found = classified(subject, subject.features, scores, templates)
    results, notes = beside(subject, scores.argmax(axis=1) == subject.features.labels)
    return found._replace(results=(*found.results, *results), table={**found.table, "notes": notes})


def probe(subject: Subject) -> Found:
    check_taught(subject)
    return _probed(subject, subject.probe, subject.features, len(subject.training_features.rows))


def probe_before_projection(subject: Subject) -> Found:
    """As in the paper (appendix A.3): the features that the projection into the common space starts from."""
    assert subject.training is not None
    check_taught(subject)
    training = subject.encode(subject.training, "training, before the projection", projected=False)
    features = subject.encode(subject.measured, "before the projection", projected=False)
    return _probed(subject, subject.fit(training), features, len(training.rows))


def k_nearest(subject: Subject) -> Found:
    training, found = subject.training_features, subject.features
    k = min(_K, len(training.rows))
    classes, votes = k_nearest_votes(training.features, training.labels, found.features, k=k)
    scores = np.full((len(votes), len(subject.data.class_names)), -np.inf, np.float32)
    scores[:, classes] = votes
    table = {"k": k, "training_images": len(training.rows), "notes": untaught(subject)}
    return classified(subject, found, scores, table)


def few_shot(subject: Subject) -> Found:
    training, found = subject.training_features, subject.features
    check_taught(subject, measured=True)
    shots, notes = _shots(subject)
    right = subject.cosines(found.features).argmax(axis=1) == found.labels
    subject.say("fitting probes on a few shots")
    results = tuple(
        few_shot_accuracy(
            training.features,
            training.labels,
            found.features,
            found.labels,
            shots=shots,
            zero_shot=float(right.mean()),
            draws=DRAWS,
            seed=subject.settings.seed,
        )
    )
    zero_shot = of_mean("zero-shot", right, seed=subject.settings.seed)
    curve = [[result.value, result.low, result.high] for result in results[: len(shots)]]
    table = {"shots": shots, "curve": curve, "zero_shot": list(zero_shot[1:]), "draws": DRAWS}
    return Found(results, {**table, "notes": [*untaught(subject), *notes]})


def _shots(subject: Subject) -> tuple[list[int], list[str]]:
    """How many images of each class are drawn, and what there is to say of classes that have fewer."""
    names, limit = subject.data.class_names, subject.settings.limit
    images = np.bincount(subject.training_features.labels, minlength=len(names))
    why = f", with --limit {limit}" if limit is not None else ""
    notes = []
    for count in SHOTS:
        few = np.flatnonzero((images > 0) & (images < count))
        if count > images.max():
            notes.append(f"{count}-shot is left out: no class has more than {images.max():,} training images{why}")
        elif len(few):
            which, have = some([names[i] for i in few]), "has" if len(few) == 1 else "have"
            many = f"{len(few):,} of {len(names):,} classes {have} fewer training images{why}"
            notes.append(f"{count}-shot: {many} ({which}); all that there are of these are drawn")
    return [count for count in SHOTS if count <= images.max()], notes


def prompts(subject: Subject) -> Found:
    """Which templates help, of those of the data set, or of ImageNet's where that has one alone."""
    training, found, seed = subject.training_features, subject.features, subject.settings.seed
    offered = subject.templates if len(subject.templates.templates) > 1 else template_set("imagenet")
    rows = np.random.default_rng(seed).permutation(len(training.rows))[:_CHOSEN_ON]
    subject.say("encoding each template")
    each = template_features(subject.clip, subject.data.class_names, offered)
    search = greedy_templates(
        training.features[rows], training.labels[rows], each, offered, progress=subject.report("choosing templates")
    )

    def measured(name: str, chosen: np.ndarray) -> Result:
        mean = chosen.mean(axis=0)  # what is nearest does not depend on its length, but on its direction
        classes = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return of_mean(name, (found.features @ classes.T).argmax(axis=1) == found.labels, seed=seed)

    place = {template: i for i, template in enumerate(offered.templates)}
    chosen = [place[template] for template in search.templates]
    results = (
        measured("chosen templates", each[chosen]),
        measured("all templates", each),
        measured("first chosen", each[chosen[:1]]),
    )
    steps = [[step.template, step.accuracy] for step in search.steps]
    return Found(results, {"steps": steps, "offered": len(place), "set": offered.name, "chosen_on": len(rows)})


# ── images and captions ──────────────────────────────────────────────────────────────────────────────────────────────


def retrieval(subject: Subject) -> Found:
    found = subject.features
    captions = [subject.captions(int(row)) for row in found.rows]
    subject.say("encoding captions")
    texts = subject.clip.encode_texts([text for each in captions for text in each], truncate=True)
    owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
    results = retrieval_recall(found.features, texts, owner, seed=subject.settings.seed)
    table = {"images": len(captions), "captions": len(texts)}
    return Found(tuple(results), table)


# ── how far to trust it ──────────────────────────────────────────────────────────────────────────────────────────────


def calibration(subject: Subject) -> Found:
    found, seed = subject.features, subject.settings.seed
    probabilities = subject.probabilities(found.features)
    bins = [[b.images, or_none(b.confidence), or_none(b.accuracy)] for b in reliability(probabilities, found.labels)]
    results = list(calibration_error(probabilities, found.labels, seed=seed))
    results.append(of_mean("mean confidence", probabilities.max(axis=1), seed=seed))
    return Found(tuple(results), {"bins": bins})


def abstaining(subject: Subject) -> Found:
    if subject.data.of_strangers:
        return strangers_to_imagenet(subject)
    found, seed = subject.features, subject.settings.seed
    probabilities = subject.probabilities(found.features)
    results, thresholds = [], []
    if subject.training is not None:
        training = subject.training_features
        chosen_on = subject.probabilities(training.features)
        for error in ERRORS:
            threshold = threshold_at_error(chosen_on, training.labels, error)
            here = {each.name: each for each in abstention(probabilities, found.labels, threshold, seed=seed)}
            coverage, answered = here["coverage"], here.get("accuracy when answered")
            thresholds.append([error, or_none(threshold), list(coverage[1:]), answered and list(answered[1:])])
            results.append(coverage._replace(name=f"coverage at {error:.0%} error"))
            if answered:
                results.append(answered._replace(name=f"accuracy at {error:.0%} error"))
    strangers = _strangers(subject)
    notes = [strangers] if isinstance(strangers, str) else []
    results += [strangers] if isinstance(strangers, Result) else []
    curve = coverage_curve(probabilities, found.labels)
    places = np.unique(np.linspace(0, len(curve.coverage) - 1, _POINTS).astype(int))
    points = np.stack([curve.coverage[places], curve.accuracy[places]], axis=1)
    return Found(tuple(results), {"curve": points.tolist(), "thresholds": thresholds, "notes": notes})


def _strangers(subject: Subject) -> Result | str:
    """Half of the class names, drawn by the seed, are left off the list: are the images of these less certain?

    Or why that cannot be said.
    """
    found, n = subject.features, len(subject.data.class_names)
    if n < 4:
        return f"strangers AUROC is left out: of {n} classes half are too few to choose from"
    listed = np.sort(np.random.default_rng(subject.settings.seed).permutation(n)[: n // 2])
    confidence = subject.probabilities(found.features, subject.classes[listed]).max(axis=1)
    known = np.isin(found.labels, listed)
    if known.all() or not known.any():
        half = "that are listed" if known.all() else "that are left off"
        return f"strangers AUROC is left out: all measured images are of the classes {half}, drawn by the seed"
    return auroc("strangers AUROC", confidence[known], confidence[~known], seed=subject.settings.seed)


def robustness(subject: Subject) -> Found:
    """Each corruption in each severity, of some of the images; of zero-shot and, where it can be fitted, of a probe."""
    images, seed = subject.some(subject.measured, MOST_CORRUPTED), subject.settings.seed
    if subject.training is not None:
        check_taught(subject)
    fitted = subject.probe if subject.training is not None else None

    def right(found: ImageFeatures) -> dict[str, np.ndarray]:
        scores = {"zero-shot": subject.cosines(found.features)}
        if fitted is not None:
            scores["probe"] = _scores(subject, fitted, found.features)
        return {whose: each.argmax(axis=1) == found.labels for whose, each in scores.items()}

    found = subject.encode(images, "uncorrupted")
    clean = right(found)
    corrupted = {
        (kind, severity): right(_corrupted(subject, images, kind, severity))
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    }
    results: list[Result] = []
    table: dict[str, Any] = {"images": len(found.rows), "severities": list(SEVERITIES)}
    for whose in clean:
        untouched = of_mean(f"{whose}, uncorrupted", clean[whose], seed=seed)
        of_each = {which: each[whose] for which, each in corrupted.items()}
        shares = {kind: [share(of_each[kind, severity], seed) for severity in SEVERITIES] for kind in CORRUPTIONS}
        told = [each._replace(name=f"{whose}, {each.name}") for each in corruption_accuracy(of_each, seed=seed)]
        results += [untouched, *told[-1:], *told[:-1]]
        table[whose] = {"clean": list(untouched[1:]), "all": list(told[-1][1:]), "kinds": shares}
    if fitted is not None:
        lost = [np.mean([each[whose] for each in corrupted.values()], axis=0) - clean[whose] for whose in clean]
        results.append(of_mean("effective robustness over the probe", lost[0] - lost[1], seed=seed))
    return Found(tuple(results), table)


def _corrupted(subject: Subject, images: "LabelledImages", kind: str, severity: int) -> ImageFeatures:
    seed = subject.settings.seed

    def change(image: "Image", number: int) -> "Image":
        return corrupt(image, kind, severity, seed=seed + number)

    return subject.encode(images, f"{kind} {severity}", change=change, change_name=f"{kind} {severity} seed {seed}")


# ── the model itself, and the people in the pictures ─────────────────────────────────────────────────────────────────


def efficiency(subject: Subject) -> Found:
    """Of the model, on some of the images; of no data set."""
    images = subject.some(subject.measured, _TIMED)
    pixels = []
    for index in range(len(images)):
        with contextlib.suppress(DataError, ImageError):
            pixels.append(read_image(images.image(index)))
    subject.say("timing")
    return Found(tuple(measure_efficiency(subject.clip, pixels)), {"batch_size": 32})


def bias(subject: Subject) -> Found:
    """The classes of the data set are the groups; the labels are the user's."""
    labels, found = subject.settings.labels, subject.features
    classes = class_features(subject.clip, [fill(subject.templates, label) for label in labels])
    present, numbers = np.unique(found.labels, return_inverse=True)
    groups = [subject.data.class_names[group] for group in present]
    shares = label_shares(found.features @ classes.T, numbers, labels, groups, seed=subject.settings.seed)
    table: dict[str, Any] = {"groups": groups, "labels": list(labels), "images": list(shares.images)}
    if absent := [name for i, name in enumerate(subject.data.class_names) if i not in present]:
        many = f"{len(absent):,} of {len(subject.data.class_names):,} groups"
        table["notes"] = [f"{many} left out, as no measured image is of them: {some(absent)}"]
    table |= {name: getattr(shares, name).tolist() for name in ("shares", "low", "high")}
    return Found((shares.largest_gap, *shares.gaps), table)


# ── what they share ──────────────────────────────────────────────────────────────────────────────────────────────────


def _probed(subject: Subject, fitted: LinearProbe, found: ImageFeatures, training_images: int) -> Found:
    scores = _scores(subject, fitted, found.features)
    sweep = [[float(C), float(accuracy)] for C, accuracy in fitted.sweep_]
    table = {"C": float(fitted.C_), "sweep": sweep, "training_images": training_images, "notes": untaught(subject)}
    return classified(subject, found, scores, table)


def _scores(subject: Subject, fitted: LinearProbe, features: np.ndarray) -> np.ndarray:
    """(n, n_classes): of a probe whose labels are the numbers of the classes."""
    return probe_scores(fitted, features, fitted.classes_, len(subject.data.class_names))


def _needs_classes(data: DataSet, settings: Settings) -> str | None:
    if data.of_strangers:
        return "its images are of no class that it lists: abstaining, beside imagenet, measures it"
    return None if data.class_names else "it has captions and no classes"


def _needs_known(data: DataSet, settings: Settings) -> str | None:
    if data.of_strangers:
        return None if data.imagenet else "its images are strangers to ImageNet's: name imagenet in --data beside it"
    return _needs_classes(data, settings)


def _needs_training(data: DataSet, settings: Settings) -> str | None:
    return _needs_classes(data, settings) or (None if data.training else "it has no training split")


def _needs_captions(data: DataSet, settings: Settings) -> str | None:
    return "it has classes and no captions" if data.class_names else None


def _needs_labels(data: DataSet, settings: Settings) -> str | None:
    if not settings.labels:
        return _needs_classes(data, settings) or "no --labels say what to look for in its groups"
    one = f"--labels names {settings.labels[0]!r:.40} alone: give two or more to choose from"
    return _needs_classes(data, settings) or (one if len(settings.labels) < 2 else None)


def _needs_nothing(data: DataSet, settings: Settings) -> str | None:
    return None


TASKS = {
    "zero-shot": Task(zero_shot, _needs_classes, learns=False),
    "probe": Task(probe, _needs_training),
    "probe-before-projection": Task(probe_before_projection, _needs_training, by_default=False),
    "k-nearest": Task(k_nearest, _needs_training),
    "few-shot": Task(few_shot, _needs_training),
    "prompts": Task(prompts, _needs_training),
    "calibration": Task(calibration, _needs_classes, learns=False),
    "abstaining": Task(abstaining, _needs_known),
    "robustness": Task(robustness, _needs_classes),
    "retrieval": Task(retrieval, _needs_captions, learns=False),
    "bias": Task(bias, _needs_labels, by_default=False, learns=False),
    "efficiency": Task(efficiency, _needs_nothing, of_model=True),
}
