"""The memory that loading takes, for both towers of a ViT-B/32-shaped model and for each alone (Linux).

    python benchmarks/tower_memory.py

"own" is memory of the process alone, "peak" also counts the pages of the weight file mapped while the model is built.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import sightline

LOAD = """
import sys, sightline, sightline.encoder
def mebibytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) / 1024
own, peak = mebibytes("RssAnon"), mebibytes("VmHWM")
clip = sightline.load(sys.argv[1], towers=sys.argv[2], device="cpu")
weights = sum(p.numel() * 4 for p in clip.model.parameters()) / 2**20
own, peak = mebibytes("RssAnon") - own, mebibytes("VmHWM") - peak
print(f"{sys.argv[2]:5}  weights {weights:.0f} MiB  own +{own:.0f} MiB  peak +{peak:.0f} MiB")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = sightline.create_model("ViT-B/32").eval()
        sightline.Encoder(model, sightline.Tokenizer.standard()).save(Path(folder) / "model")
        for towers in ("image", "text", "both"):
            subprocess.run([sys.executable, "-c", LOAD, f"{folder}/model", towers], check=True)


if __name__ == "__main__":
    main()
