"""Sets of ImageNet's classes beside ImageNet itself, of the same model (paper section 3.3, figure 13)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sightline.evaluate.abstaining import auroc
from sightline.evaluate.data_sets import DataSet
from sightline.evaluate.found import Found
from sightline.evaluate.intervals import Result, interval, of_mean
from sightline.evaluate.named_sets import same_name
from sightline.evaluate.robustness import RESNET_101
from sightline.evaluate.subject import Subject

IMAGENET = "imagenet"
COMPARABLE = 0.15  # of ImageNet accuracy to either side of the ResNet-101's: further off, drops say nothing
_RESNET_101 = {same_name(name): value for name, value in RESNET_101.items()}


def beside_imagenet(data: Sequence[DataSet]) -> list[DataSet]:
    """The data sets, those of ImageNet's classes with ImageNet at their side where it is one of them."""
    imagenet = next((each for each in data if each.name == IMAGENET and each.imagenet_numbers), None)
    shifts = [each.name != IMAGENET and bool(each.imagenet_numbers) for each in data]
    return [replace(each, imagenet=imagenet) if shift else each for each, shift in zip(data, shifts, strict=True)]


def resnet_101(data: str) -> float | None:
    """The accuracy of the paper's ResNet-101, if it is given of this set."""
    return _RESNET_101.get(same_name(data))


def beside(subject: Subject, right: np.ndarray) -> tuple[list[Result], list[str]]:
    """Of a set with ImageNet at its side: accuracy on ImageNet's images of its classes, and what is lost to ImageNet.

    Args:
        right: of each image of the set whether it is right, (n,).

    Returns:
        "imagenet top-1, same classes", where the set has not all of them; and "effective robustness over ResNet-101",
        where the paper gives that model's accuracy and the two are about as good on ImageNet: how much more of that
        accuracy is kept. Of one baseline there is no line to be above, as in Taori et al. 2020: it is the difference
        of the two drops, and a model that is right on little has little to lose. And what there is to say of it.
    """
    if subject.data.imagenet is None:
        return [], []
    imagenet, seed = _imagenet(subject), subject.settings.seed
    results, notes = list[Result](), list[str]()
    cosines, labels = imagenet.cosines(imagenet.features.features), imagenet.features.labels
    of_class = _of_class(subject, imagenet)
    if (of_class < 0).any():
        columns, shown = np.flatnonzero(of_class >= 0), of_class[labels] >= 0
        if shown.any():
            best = columns[cosines[shown][:, columns].argmax(axis=1)]
            same = of_class[best] == of_class[labels[shown]]
            results.append(of_mean("imagenet top-1, same classes", same, seed=seed))
    theirs, usual = resnet_101(subject.data.name), RESNET_101["imagenet"]
    whole = cosines.argmax(axis=1) == labels
    if theirs is not None and abs(whole.mean() - usual) > COMPARABLE:
        notes.append(
            f"effective robustness over ResNet-101 is left out: imagenet top-1 is {whole.mean():.1%}, and a difference "
            f"of drops says something only within {100 * COMPARABLE:.0f} points of that model's {usual:.1%}"
        )
    elif theirs is not None:
        drop = usual - theirs

        def gain(rows: np.ndarray, other_rows: np.ndarray) -> np.ndarray:
            return right[rows].mean(axis=1) - whole[other_rows].mean(axis=1) + drop

        ends = interval(gain, len(right), len(whole), seed=seed)
        value = float(right.mean() - whole.mean() + drop)
        results.append(Result("effective robustness over ResNet-101", value, *ends))
    return results, notes


def strangers_to_imagenet(subject: Subject) -> Found:
    """ImageNet-O: how often an image of ImageNet is surer, among its 1,000 classes, than one that is of none."""
    imagenet, ours = _imagenet(subject), subject.features
    known, strange = (imagenet.probabilities(each.features).max(axis=1) for each in (imagenet.features, ours))
    area = auroc("strangers AUROC", known, strange, seed=subject.settings.seed)
    note = f"its {len(strange):,} images are strangers to the classes of {len(known):,} measured images of imagenet"
    return Found((area,), {"notes": [note]})


def _imagenet(subject: Subject) -> Subject:
    """The same model on ImageNet."""
    assert subject.data.imagenet is not None
    return subject.on(subject.data.imagenet)


def _of_class(subject: Subject, imagenet: Subject) -> np.ndarray:
    """For each class of ImageNet, in its order, the class of the set that it stands for; -1 for none."""
    place = {number: i for i, (number,) in enumerate(imagenet.data.imagenet_numbers)}
    of_class = np.full(len(place), -1)
    for i, numbers in enumerate(subject.data.imagenet_numbers):
        of_class[[place[number] for number in numbers]] = i
    return of_class
