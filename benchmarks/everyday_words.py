"""CIFAR-10's classes by the words that people use for them.

    python benchmarks/everyday_words.py cifar10/test.parquet [--model starter]

A word takes the place of its class's name, alone: how many of the class's images are found by it, beside how many are
by the name, with one plain template. Last, all words at once.
"""

import argparse

import numpy as np

import sightline
from sightline.evaluate import open_labelled
from sightline.evaluate.features import image_features

WORDS = {
    "airplane": ["plane", "aeroplane", "jet"],
    "automobile": ["car"],
    "cat": ["kitten"],
    "dog": ["puppy"],
    "frog": ["toad"],
    "horse": ["pony"],
    "ship": ["boat"],
    "truck": ["lorry"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10")
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()
    clip = sightline.load(arguments.model)
    data = open_labelled(arguments.cifar10)
    names = list(data.class_names)
    images = image_features(clip, data)

    def right(words: list[str]) -> np.ndarray:
        texts = clip.encode_texts([f"a photo of a {word}." for word in words])
        return (images.features @ texts.T).argmax(axis=1) == images.labels

    print("| class | by its name | by another word |\n|---|---|---|")
    by_name = right(names)
    for name, words in WORDS.items():
        own = images.labels == names.index(name)
        found = [f"{word} {right([word if n == name else n for n in names])[own].mean():.1%}" for word in words]
        print(f"| {name} | {by_name[own].mean():.1%} | {', '.join(found)} |")
    all_words = [WORDS[name][0] if name in WORDS else name for name in names]
    print(f"| all | {by_name.mean():.1%} | {', '.join(all_words)}: {right(all_words).mean():.1%} |")


if __name__ == "__main__":
    main()
