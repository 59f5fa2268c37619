"""Measuring models. An evaluator takes features, scores or an encoder, and yields `Result(name, value, low, high)`.

| file | owns |
|---|---|
| `intervals` | what is yielded; intervals by the bootstrap, and the difference of two models on the same images |
| `data_sets` | a data set by its name or path: splits, class names, prompts |
| `layouts`, `fetching`, `hugging_face` | where its files lie, and how others are had |
| `sources`, `labelled_shards` | what labels and captions are read from, and which of the two there are |
| `named_sets` | what is known of published data sets |
| `labelled` | images with a class each or with captions, from any source that has them |
| `corruptions` | pictures made worse, in the manner of ImageNet-C |
| `features` | the features of a set, computed once and kept |
| `accuracy` | top-1, top-5 and mean per class, of whatever gives each class a score |
| `confusion` | which classes are taken for which |
| `zero_shot` | accuracy of zero-shot classification |
| `prompts` | which templates help: a greedy search on training images |
| `probe` | accuracy of a linear probe |
| `fitting` | a probe fitted to labelled images, beside zero-shot |
| `few_shot` | accuracy of linear probes on a few images of each class, and how many equal zero-shot |
| `k_nearest` | accuracy by the votes of the nearest labelled images |
| `retrieval` | recall@k from image to text and from text to image |
| `calibration` | expected calibration error, and the table behind it |
| `abstaining` | answering only when sure: coverage, accuracy, thresholds, and noticing images of no class |
| `robustness` | accuracy where images are shifted or corrupted, and beyond what is usual there |
| `bias` | how often each label falls on each group |
| `efficiency` | parameters, FLOPs and features per second, beside accuracy |
| `comparisons` | which of several models is better, paired and after Holm |
| `shifts` | sets of ImageNet's classes beside ImageNet, and strangers to it |
| `found` | what a task finds, and the figures that all classifiers have |
| `subject`, `tasks`, `run` | a model on a data set, what is measured of it, and the whole |
| `results` | all that was found, written to `results.json` and read again |
| `report`, `sections`, `standing`, `cells`, `plots` | `report.html`: the page, its parts, their tables and drawings |
| `published` | what others printed of OpenAI's models, as data |
"""

from sightline.evaluate.abstaining import abstention, auroc, coverage_curve, threshold_at_error
from sightline.evaluate.accuracy import accuracy_of_scores
from sightline.evaluate.bias import label_bias, label_shares
from sightline.evaluate.calibration import calibration_error, reliability
from sightline.evaluate.confusion import confusion_matrix, most_confused
from sightline.evaluate.corruptions import CORRUPTIONS, corrupt
from sightline.evaluate.data_sets import DataSet, available_data_sets, open_captioned, open_data_set
from sightline.evaluate.efficiency import efficiency_table, flops, measure_efficiency, parameters
from sightline.evaluate.features import ImageFeatures, image_features
from sightline.evaluate.few_shot import few_shot_accuracy, shots_to_equal
from sightline.evaluate.intervals import Difference, Result, named, paired_difference
from sightline.evaluate.k_nearest import k_nearest_accuracy
from sightline.evaluate.labelled import CaptionedImages, LabelledImages, open_labelled
from sightline.evaluate.probe import linear_probe_accuracy
from sightline.evaluate.prompts import greedy_templates, template_features
from sightline.evaluate.published import PublishedResult, published_results
from sightline.evaluate.retrieval import retrieval_recall
from sightline.evaluate.robustness import corruption_accuracy, effective_robustness, shift_accuracy
from sightline.evaluate.zero_shot import zero_shot_accuracy

__all__ = [
    "CORRUPTIONS",
    "CaptionedImages",
    "DataSet",
    "Difference",
    "ImageFeatures",
    "LabelledImages",
    "PublishedResult",
    "Result",
    "abstention",
    "accuracy_of_scores",
    "auroc",
    "available_data_sets",
    "calibration_error",
    "confusion_matrix",
    "corrupt",
    "corruption_accuracy",
    "coverage_curve",
    "effective_robustness",
    "efficiency_table",
    "few_shot_accuracy",
    "flops",
    "greedy_templates",
    "image_features",
    "k_nearest_accuracy",
    "label_bias",
    "label_shares",
    "linear_probe_accuracy",
    "measure_efficiency",
    "most_confused",
    "named",
    "open_captioned",
    "open_data_set",
    "open_labelled",
    "paired_difference",
    "parameters",
    "published_results",
    "reliability",
    "retrieval_recall",
    "shift_accuracy",
    "shots_to_equal",
    "template_features",
    "threshold_at_error",
    "zero_shot_accuracy",
]
