"""Put a trained model into the package, in half precision and with its card.

    python recipes/starter/package.py starter src/sightline/starter

The model that was there is replaced.
"""

import shutil
import sys
from pathlib import Path

import torch

import sightline
from sightline.checkpoint import save_checkpoint


def main(model: str, folder: Path) -> None:
    clip = sightline.load(model)
    card = (Path(__file__).parent / "CARD.md").read_text("utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    save_checkpoint(clip.model, clip.tokenizer, folder, card=card, dtype=torch.float16)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
