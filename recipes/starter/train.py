"""Train the starter model: a small CLIP, from class names put into sentences.

    python recipes/starter/prepare.py DATA ARRAYS
    python recipes/starter/train.py ARRAYS OUT

A text tower that learns from scratch holds the image tower back, so the training has three stages: the image tower
against a free vector per concept, the text tower fitted to those vectors, then both together on captions. Stages one
and three use the symmetric contrastive loss (paper, figure 3). Each stage leaves a checkpoint in OUT; a run that was
stopped goes on from the last one. The model ends up in OUT/starter, in half precision.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.checkpoint import save_checkpoint
from sightline.config import ModelConfig, ModifiedResNetConfig, TextConfig
from sightline.models.clip import create_model
from sightline.tokenizer import Tokenizer

CONFIG = ModelConfig(
    embed_dim=256,
    vision=ModifiedResNetConfig(image_size=64, layers=(2, 2, 2, 2), width=32, heads=16),
    text=TextConfig(context_length=77, vocab_size=8192, width=192, layers=2, heads=3, mlp_width=768),
)
BATCH = 256
HELD_OUT = 500  # the last images of each set are never trained on; they tell how the training goes
# How often each set is drawn from, as a share of the batch.
SHARES = {"tiny-imagenet": 102 / 256, "cifar100": 62 / 256, "cifar10": 72 / 256, "caltech101": 20 / 256}


class Concepts:
    """Every text that a class may be called, and which texts say something true or doubtful of which class."""

    def __init__(self, description: dict, synonyms: dict[str, list[str]]):
        names, hypernyms = description["names"], description["hypernyms"]
        self.templates: list[str] = description["templates"]
        self.labels = sorted(synonyms)
        # A synonym that is another class's label ("panda" of the lesser panda) would teach the wrong thing.
        own = {x: [x, *(s for s in synonyms[x] if s.lower() not in self.labels)] for x in self.labels} | names
        self.names = [[name.lower() for name in own[label]] for label in self.labels]
        self.hypernyms = [[h for h, members in hypernyms.items() if label in members] for label in self.labels]
        self.texts = sorted({t for texts in (*self.names, *self.hypernyms) for t in texts})
        self.index = {t: i for i, t in enumerate(self.texts)}
        self.related = self._related()

    def _related(self) -> Tensor:
        """(classes, texts), true where a text is no negative of a class: its own names and hypernyms, what shares
        a name with it, and the kinds of it ("Chihuahua" for an image that is only known to be a dog)."""
        said = torch.zeros(len(self.labels), len(self.texts), dtype=torch.bool)
        for row, texts in enumerate(zip(self.names, self.hypernyms, strict=True)):
            said[row, [self.index[t] for group in texts for t in group]] = True
        related = said.clone()
        for row, names in enumerate(self.names):
            kinds = said[:, [self.index[t] for t in names]].any(dim=1)
            related[row] |= said[kinds].any(dim=0) & self._named(kinds)
        return related

    def _named(self, classes: Tensor) -> Tensor:
        """(texts,), true for the names (not the hypernyms) of the classes."""
        mask = torch.zeros(len(self.texts), dtype=torch.bool)
        mask[[self.index[t] for c in classes.nonzero().flatten().tolist() for t in self.names[c]]] = True
        return mask

    def draw(self, classes: list[int]) -> list[int]:
        """A text for each class: half the time its first name, else a synonym or a hypernym."""
        return [self.index[self._draw(c)] for c in classes]

    def _draw(self, c: int) -> str:
        if random.random() < 0.5 or len(self.names[c]) + len(self.hypernyms[c]) == 1:
            return self.names[c][0]
        return (
            random.choice(self.hypernyms[c] or self.names[c]) if random.random() < 0.6 else random.choice(self.names[c])
        )


class Images:
    """The arrays of `prepare.py`, drawn from by share and augmented a batch at a time."""

    def __init__(self, folder: Path):
        self.pixels: dict[str, np.ndarray] = {}
        self.labels: dict[str, list[str]] = {}
        self.synonyms: dict[str, list[str]] = {}
        for name in SHARES:
            meta = json.loads((folder / f"{name}.json").read_text())
            self.pixels[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
            self.labels[name] = meta["labels"]
            for label, others in meta["synonyms"].items():
                self.synonyms[label] = self.synonyms.get(label) or others
        self.classes: dict[str, Tensor] = {}

    def number_classes(self, labels: list[str]) -> None:
        number = {label: i for i, label in enumerate(labels)}
        self.classes = {name: torch.tensor([number[x] for x in self.labels[name]]) for name in SHARES}

    def batch(self, size: int, side: int) -> tuple[Tensor, Tensor]:
        """Augmented images (size, 3, side, side), normalised, and their classes (size,)."""
        images, classes = [], []
        for name, share in SHARES.items():
            rows = np.random.randint(0, len(self.pixels[name]) - HELD_OUT, round(size * share))
            images.append(augment(torch.from_numpy(self.pixels[name][rows]), side, sharp=not name.startswith("cifar")))
            classes.append(self.classes[name][torch.from_numpy(rows)])
        return torch.cat(images), torch.cat(classes)

    def held_out(self, name: str) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(self.pixels[name][-HELD_OUT:])
        side = CONFIG.vision.image_size
        x = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (side, side), mode="bicubic", antialias=True)
        return normalise(x.clamp(0, 255)), self.classes[name][-HELD_OUT:]


def normalise(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (CONFIG.mean, CONFIG.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, side: int, sharp: bool) -> Tensor:
    """Random crops of 40–100% of the area, flips, light, and blur for a quarter of the sharp images."""
    n = len(pixels)
    x = pixels.permute(0, 3, 1, 2).float()
    if sharp:  # the small sets come enlarged and so blurred: without this, blur tells the sets apart
        blurred = torch.rand(n) < 0.25
        small = F.avg_pool2d(x[blurred], 2)
        x[blurred] = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    area = torch.empty(n).uniform_(0.4, 1.0)
    aspect = torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * torch.where(torch.rand(n) < 0.5, 1.0, -1.0)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * torch.empty(n).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - height) * torch.empty(n).uniform_(-1, 1)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    x = normalise(F.grid_sample(x, grid, padding_mode="reflection", align_corners=False))
    contrast, brightness = torch.empty(2, n, 1, 1, 1).uniform_(-0.25, 0.25)
    return x * (1 + contrast) + brightness


def image_loss(logits: Tensor, targets: Tensor, related: Tensor) -> Tensor:
    """Cross-entropy of each row against its target, with the related columns that are no negatives left out."""
    excluded = related.scatter(1, targets[:, None], False)
    return F.cross_entropy(logits.masked_fill(excluded, -math.inf), targets)


def symmetric_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, related: Tensor) -> Tensor:
    """Paper, figure 3: cross-entropy over the rows and over the columns of the pairs' similarities."""
    logits = scale * image_features @ text_features.T
    own = torch.arange(len(logits))
    return (image_loss(logits, own, related) + image_loss(logits.T, own, related.T)) / 2


def parameter_groups(module: nn.Module, decay: float) -> list[dict]:
    """Weight matrices decay; gains, biases and the temperature do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


class Trainer:
    def __init__(self, arrays: Path, out: Path):
        description = json.loads((Path(__file__).parent / "concepts.json").read_text())
        self.out = out
        self.images = Images(arrays)
        self.concepts = Concepts(description, self.images.synonyms)
        self.images.number_classes(self.concepts.labels)
        self.model = create_model(CONFIG)
        self.model.visual.to(memory_format=torch.channels_last)
        # Training at 32 px leaves one place where the attention pool expects two by two.
        self.model.visual.attnpool.register_forward_pre_hook(lambda _, args: F.interpolate(args[0], size=(2, 2)))
        self.table = nn.Parameter(torch.randn(len(self.concepts.texts), CONFIG.embed_dim) * 0.05)

    # ── stage one ────────────────────────────────────────────────────────────────────────────────────────────────

    def train_image_tower(self, small: int, large: int, peak: float, floor: float) -> None:
        """Against one free vector per concept: `small` images at 32 px, then `large` at 64 px."""
        steps, small_steps = (small + large) // BATCH, small // BATCH
        groups = parameter_groups(self.model.visual, 0.05)
        groups.append({"params": [self.table, self.model.logit_scale], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)

        def loss_of(step: int) -> Tensor:
            x, classes = self.images.batch(BATCH, 32 if step < small_steps else 64)
            targets = torch.tensor(self.concepts.draw(classes.tolist()))
            with torch.autocast("cpu", torch.bfloat16):
                features = self.model.visual(x)
            features, table = F.normalize(features.float(), dim=-1), F.normalize(self.table, dim=-1)
            related = self.concepts.related[classes]
            scale = self.model.logit_scale.exp()
            by_image = image_loss(scale * features @ table.T, targets, related)
            by_text = image_loss(scale * table[targets] @ features.T, torch.arange(BATCH), related[:, targets].T)
            return (by_image + by_text) / 2

        self.loop("image", steps, optimizer, loss_of, lambda t: floor + (peak - floor) * cosine(t))

    # ── stage two ────────────────────────────────────────────────────────────────────────────────────────────────

    def fit_text_tower(self, steps: int) -> None:
        """To the concept vectors, whatever the sentence around the concept."""
        target = F.normalize(self.table.detach(), dim=-1)
        text_tower = nn.ModuleList([self.model.token_embedding, self.model.transformer, self.model.ln_final])
        groups = parameter_groups(text_tower, 0.01)
        extra = [self.model.positional_embedding, self.model.text_projection]
        groups.append({"params": extra, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)

        def loss_of(_: int) -> Tensor:
            texts = torch.randint(len(self.concepts.texts), (BATCH,))
            features = self.encode_captions(texts.tolist())
            return (1 - (features * target[texts]).sum(-1)).mean()

        self.loop("text", steps, optimizer, loss_of, lambda t: 1e-3 * cosine(t))

    # ── stage three ──────────────────────────────────────────────────────────────────────────────────────────────

    def train_both(self, images: int, peak: float) -> None:
        """Image-caption pairs against one another."""
        optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.05), lr=peak, betas=(0.9, 0.98), fused=True)

        def loss_of(_: int) -> Tensor:
            x, classes = self.images.batch(BATCH, 64)
            texts = self.concepts.draw(classes.tolist())
            with torch.autocast("cpu", torch.bfloat16):
                features = self.model.visual(x)
                captions = self.encode_captions(texts).float()
            related = self.concepts.related[classes][:, texts]
            return symmetric_loss(
                F.normalize(features.float(), dim=-1), captions, self.model.logit_scale.exp(), related
            )

        self.loop("both", images // BATCH, optimizer, loss_of, lambda t: peak * cosine(t))

    def encode_captions(self, texts: list[int], template: str | None = None) -> Tensor:
        tokenizer = Tokenizer.standard(vocab_size=CONFIG.text.vocab_size)
        captions = [
            (template or random.choice(self.concepts.templates)).replace("{}", self.concepts.texts[t]) for t in texts
        ]
        tokens = tokenizer(captions)
        return self.model.encode_text(tokens[:, : int(tokens.argmax(-1).max()) + 1], normalize=True)

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def loop(self, stage: str, steps: int, optimizer, loss_of, learning_rate) -> None:
        path, start = self.out / f"{stage}.pt", 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            start = state["step"]
            self.model.load_state_dict(state["model"])
            self.table.data.copy_(state["table"])
            if start < steps:
                optimizer.load_state_dict(state["optimizer"])
        self.model.train()
        began, mean = time.perf_counter(), 0.0
        for step in range(start, steps):
            lr = min(1.0, (step + 1) / 200) * learning_rate(step / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(100))
            mean = 0.98 * mean + 0.02 * loss.item() if mean else loss.item()
            if (step + 1) % 100 == 0:
                rate = (step + 1 - start) * BATCH / (time.perf_counter() - began)
                print(f"{stage} {step + 1}/{steps} loss {mean:.3f} lr {lr:.1e} {rate:.0f}/s", flush=True)
            if (step + 1) % 500 == 0 or step + 1 == steps:
                self.save(path, step + 1, optimizer)
                if stage != "text" or step + 1 == steps:
                    self.report(stage)

    def save(self, path: Path, step: int, optimizer) -> None:
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "table": self.table,
            "optimizer": optimizer.state_dict(),
        }
        aside = path.with_suffix(".part")
        torch.save(state, aside)
        aside.replace(path)

    @torch.no_grad()
    def report(self, stage: str) -> None:
        """Top-1 on the held-out training images, each set among its own labels."""
        self.model.eval()
        for name in SHARES:
            x, classes = self.images.held_out(name)
            own = sorted({self.concepts.index[self.concepts.names[c][0]] for c in self.images.classes[name].tolist()})
            if stage == "image":
                candidates = F.normalize(self.table[own], dim=-1)
            else:
                candidates = self.encode_captions(own, template="a photo of a {}.")
            predicted = torch.tensor(own)[(self.model.encode_image(x, normalize=True) @ candidates.T).argmax(-1)]
            truth = torch.tensor([self.concepts.index[self.concepts.names[c][0]] for c in classes.tolist()])
            print(f"  {name} {(predicted == truth).float().mean():.3f}", end="", flush=True)
        print(flush=True)
        self.model.train()


def cosine(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="scale the length of every stage (0.01 to try it)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = Trainer(args.arrays, args.out)
    trainer.train_image_tower(int(800_000 * args.scale), int(600_000 * args.scale), peak=2e-3, floor=3e-4)
    trainer.fit_text_tower(int(800 * args.scale))
    trainer.train_both(int(192_000 * args.scale), peak=5e-4)
    card = (Path(__file__).parent / "CARD.md").read_text("utf-8")
    tokenizer = Tokenizer.standard(CONFIG.text.context_length, CONFIG.text.vocab_size)
    save_checkpoint(trainer.model, tokenizer, args.out / "starter", card=card, dtype=torch.float16)


if __name__ == "__main__":
    main()
