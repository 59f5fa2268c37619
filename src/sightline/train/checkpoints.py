"""Checkpoints of a run: a new folder for each step, written aside, synced, renamed; the last few are kept.

Whatever moment the run dies at, every folder named `step-…` is whole. They are written by
`torch.distributed.checkpoint`, each process its own part, and load in any number of processes.
"""

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from sightline.distributed import rank, world_size
from sightline.files import sync_tree

_STEP = re.compile(r"step-(\d{9})")


class Checkpoints:
    """The checkpoints in `folder`, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that there are whole checkpoints of, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _STEP.fullmatch(path.name)))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps. All processes call this together."""
        aside = self.folder / f".step-{step:09}.part"
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".step-*.part"):
                shutil.rmtree(leftover)
            aside.mkdir()
        _wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single process, which needs no process group
            dcp.save(state, checkpoint_id=aside, no_dist=world_size() == 1)
        _wait()
        if rank() == 0:
            sync_tree(aside)
            target = self.folder / f"step-{step:09}"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(aside, target)
            sync_tree(self.folder, deep=False)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / f"step-{old:09}")
        _wait()

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill `state`, in place, with what was saved after `step` steps."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=self.folder / f"step-{step:09}", no_dist=world_size() == 1)


def _wait() -> None:
    if world_size() > 1:
        dist.barrier()
