"""Batches are a function of the seed, the step and the rank: not of workers, nor of where a run began."""

import os
import signal
import time
from itertools import islice

import pytest
import torch

from data_files import picture, write_csv, write_parquet, write_shard
from sightline.data import Augment, Batch, Batches, Pair, Pairs, loader, open_pairs, preflight, samples
from sightline.errors import DataError, InvalidArgumentError
from sightline.tokenizer import Tokenizer

TOKENIZER = Tokenizer.standard(16, 1000)
AUGMENT = Augment(8, scale=(0.5, 1.0), flip=0.5, brightness=0.2, erase=0.2)

# From Python 3.12 on, starting workers by a fork warns where torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    """Of every kind, some bad."""
    columns = {"image": [picture(i) for i in range(9)], "label": ["cat", "dog", "rocket"] * 3}
    table = write_csv(tmp_path, 10)
    table.write_text(table.read_text() + "no.png,a caption\n" * 3)
    return open_pairs(
        [table, write_shard(tmp_path / "a.tar", range(7)), write_parquet(tmp_path / "a.parquet", columns)]
    )


def batches(pairs: Pairs, batch_size: int = 4, **options) -> Batches:
    return Batches(pairs, TOKENIZER, AUGMENT, batch_size=batch_size, **options)


def first(n: int, batches: Batches) -> list[Batch]:
    return list(islice(batches, n))


def equal(ours: Batch, theirs: Batch) -> bool:
    tensors = all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("pixels", "tokens", "indices"))
    return tensors and (ours.names, ours.failures, ours.step) == (theirs.names, theirs.failures, theirs.step)


def test_a_batch_has_what_a_step_needs(pairs) -> None:
    (batch,) = first(1, batches(pairs))
    assert batch.images.shape == batch.pixels.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.tokens.dtype == batch.indices.dtype == torch.int64
    assert batch.tokens.shape[0] == len(batch) == len(batch.names) == 4
    assert batch.tokens[:, -1].any()
    assert torch.equal(batch.images[0], AUGMENT.normalise(batch.pixels)[0])


def test_workers_change_nothing(pairs) -> None:
    alone, together = batches(pairs), batches(pairs, workers=2)
    assert all(map(equal, first(20, alone), first(20, together)))
    assert alone.report == together.report
    assert alone.report.pairs == 80
    assert alone.report.failed > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_has_the_batches_of_one_that_never_stopped(pairs, workers) -> None:
    whole = first(20, batches(pairs, workers=workers))
    assert [batch.step for batch in whole] == list(range(20))
    assert all(map(equal, whole[13:], first(7, batches(pairs, start=13, workers=workers))))


def test_two_ranks_together_are_one(pairs) -> None:
    one = first(20, batches(pairs, 4))
    parts = zip(*(first(20, batches(pairs, 2, rank=rank, world_size=2)) for rank in (0, 1)), strict=True)
    for batch, (left, right) in zip(one, parts, strict=True):
        assert torch.equal(batch.pixels, torch.cat([left.pixels, right.pixels]))
        assert batch.names == left.names + right.names
        for row, tokens in zip(batch.tokens, [*left.tokens, *right.tokens], strict=True):
            assert torch.equal(row[: len(tokens)], tokens)
            assert not row[len(tokens) :].any()


def test_pieces_together_are_the_step(pairs) -> None:
    one = first(5, batches(pairs, 4))
    pieces = first(10, batches(pairs, 4, micro_batch_size=2))
    assert [(piece.step, piece.piece) for piece in pieces[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for batch, left, right in zip(one, pieces[::2], pieces[1::2], strict=True):
        assert torch.equal(batch.pixels, torch.cat([left.pixels, right.pixels]))
    assert equal(first(1, batches(pairs, 4, micro_batch_size=2, start=3))[0], pieces[6])


def test_an_epoch_has_every_good_pair_and_the_next_one_another_order(tmp_path) -> None:
    pairs = open_pairs(write_csv(tmp_path, 10))
    indices = torch.cat([batch.indices for batch in first(5, batches(pairs, 4))]).tolist()
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]
    assert torch.cat([batch.indices for batch in first(5, batches(pairs, 4, seed=1))]).tolist() != indices


def test_a_pair_is_augmented_anew_each_epoch_and_alike_in_any_batch(tmp_path) -> None:
    pairs = open_pairs(write_csv(tmp_path, 10))

    def pixels_of_pair_3(batch_size: int) -> list[bytes]:
        taken = first(20 // batch_size, batches(pairs, batch_size))
        return [p.numpy().tobytes() for b in taken for p, i in zip(b.pixels, b.indices, strict=True) if i == 3]

    assert pixels_of_pair_3(4) == pixels_of_pair_3(10)
    assert len(set(pixels_of_pair_3(4))) == 2


def test_captions_take_turns(tmp_path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "a.jsonl").write_text('{"path": "0.png", "caption": ["one", "two", "three"]}')
    taken = first(60, batches(open_pairs(tmp_path / "a.jsonl"), 1))
    drawn = [TOKENIZER.decode(batch.tokens[0, 1:-1].tolist()).strip() for batch in taken]
    assert all(drawn.count(caption) > 10 for caption in ("one", "two", "three"))


def test_parquet_larger_than_memory_is_read_window_by_window(tmp_path, monkeypatch) -> None:
    columns = {"image": [picture(i) for i in range(64)], "caption": [str(i) for i in range(64)]}
    pairs = open_pairs(write_parquet(tmp_path / "a.parquet", columns))
    monkeypatch.setattr(samples, "WINDOW_BYTES", 4 * max(block.memory for block in pairs.blocks))
    epoch = torch.cat([batch.indices for batch in first(4, batches(pairs, 16))])
    assert sorted(epoch.tolist()) == list(range(64))
    assert all(len(set((window // 4).tolist())) <= 4 for window in epoch.split(16))


def test_nothing_is_drawn_from_the_generators_that_training_draws_from(pairs) -> None:
    before = torch.random.get_rng_state()
    first(2, batches(pairs, workers=1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0}, {"batch_size": 2.0}, {"workers": -1}, {"rank": 1}, {"rank": -1}, {"world_size": 0},
        {"start": -1}, {"micro_batch_size": 3}, {"micro_batch_size": 0}, {"prefetch": 0}, {"seed": "x"},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(pairs, options) -> None:
    with pytest.raises(InvalidArgumentError):
        batches(pairs, **options)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="has no pairs"):
        batches(Made(0))


# ── workers that fail ────────────────────────────────────────────────────────────────────────────────────────────────


class Made(Pairs):
    """`n` pairs made of nothing; what `index` 3 does, a test decides."""

    sources = ("made",)

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Pair:
        if index == 3:
            self.fail()
        return Pair(picture(index), ("a caption",), str(index))

    def fail(self) -> None:
        pass


class Raising(Made):
    def fail(self) -> None:
        raise RuntimeError("a mistake in the code")


class Dying(Made):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Made):
    def fail(self) -> None:
        time.sleep(4)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (Raising(8), "RuntimeError: a mistake in the code"),
        (Dying(8), "(killed|exited).*too little memory"),
        (Hanging(8), "timed out after 1"),
    ],
)
def test_a_worker_that_fails_dies_or_hangs_is_an_error(pairs, message, monkeypatch) -> None:
    monkeypatch.setattr(loader, "TIMEOUT", 1.0)
    with pytest.raises(DataError, match=rf"a data worker: failed: .*{message}"):
        first(9, batches(pairs, 8, workers=2))


# ── before the first step ────────────────────────────────────────────────────────────────────────────────────────────


def test_preflight_says_what_there_is(pairs) -> None:
    found = preflight(pairs, TOKENIZER, AUGMENT, batch_size=4, world_size=2)
    assert found.pairs == found.sampled == 29
    assert len(found.sources) == 3
    assert len(found.unreadable) == 3
    assert found.images_per_second > 1
    assert found.refusals == []
    assert found.lines()[:2] == ["29 pairs in 3 files", "an epoch is 3.6 steps of 8"]
    assert preflight(pairs, TOKENIZER, AUGMENT, batch_size=4, sample=5).sampled == 5


def test_preflight_counts_captions_that_would_be_cut(tmp_path) -> None:
    path = write_csv(tmp_path, 2)
    path.write_text(path.read_text() + "0.png," + "word " * 50 + "\n")
    assert preflight(open_pairs(path), TOKENIZER, AUGMENT, batch_size=1).cut == ("0.png",)


def test_preflight_refuses_what_would_fail(tmp_path) -> None:
    shard = write_shard(tmp_path / "a.tar", range(2))
    (tmp_path / "same.tar").symlink_to(shard)
    twice = open_pairs([shard, tmp_path / "same.tar"])
    assert preflight(twice, TOKENIZER, AUGMENT, batch_size=4).refusals == [f"{shard} is there twice"]

    (tmp_path / "bad.csv").write_text("path,caption\nno.png,x\n")
    (few, bad) = preflight(open_pairs(tmp_path / "bad.csv"), TOKENIZER, AUGMENT, batch_size=4).refusals
    assert few == "a step contrasts 4 pairs, but there are 1: use a smaller batch"
    assert bad == f"all 1 pairs tried are bad; the first is {tmp_path / 'no.png'}: does not exist"
    assert preflight(Made(0), TOKENIZER, AUGMENT, batch_size=4).refusals == ["there are no pairs"]
