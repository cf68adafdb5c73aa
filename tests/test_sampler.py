"""The order of the images: a function of seed, epoch and rank."""

import numpy as np
import pytest
from torch.utils.data import BatchSampler

from resnet_lab.data.sampler import EvaluationSampler, Sampling, TrainSampler

GRADES = np.repeat([0, 1, 2, 4], [60, 5, 12, 3])  # class 3 has no image


def sampling(targets=GRADES, kind="none", decay=0.975, final=2.0):
    return Sampling(np.asarray(targets), kind, decay, final)


def draw(length, seed, epoch, rank=0, world_size=1):
    sampler = TrainSampler(sampling(np.zeros(length, int)), seed, rank, world_size)
    sampler.set_epoch(epoch)
    assert len(list(sampler)) == len(sampler)
    return [key[:2] for key in sampler]


def test_every_image_once_with_its_epoch():
    order = draw(50, seed=0, epoch=3)
    assert {epoch for epoch, _ in order} == {3}
    assert sorted(index for _, index in order) == list(range(50))
    assert [index for _, index in order] != list(range(50))
    assert all(type(index) is int for _, index in order)


def test_order_depends_only_on_seed_and_epoch():
    np.random.seed(1)
    first = draw(50, seed=0, epoch=1)
    np.random.seed(2)
    assert draw(50, seed=0, epoch=1) == first
    orders = {tuple(index for _, index in draw(50, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


def test_resumed_epoch_has_the_order_of_an_uninterrupted_run():
    sampler, orders = TrainSampler(sampling(np.zeros(20, int)), 5, 0, 1), []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append([key[:2] for key in sampler])
    assert draw(20, seed=5, epoch=3) == orders[3]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_the_global_batches_of_one_process(world_size):
    whole = list(BatchSampler(draw(36, 0, 2), 6, drop_last=False))
    parts = [BatchSampler(draw(36, 0, 2, rank, world_size), 6 // world_size, False) for rank in range(world_size)]
    together = [sorted(pair for batch in batches for pair in batch) for batches in zip(*parts, strict=True)]
    assert together == [sorted(batch) for batch in whole]


def test_ranks_have_equal_lengths_and_repeat_from_the_start():
    whole = draw(7, 0, 0)
    parts = [draw(7, 0, 0, rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    dealt = [parts[place % 3][place // 3] for place in range(9)]
    assert dealt == whole + whole[:2]


def test_more_ranks_than_images():
    assert [len(draw(1, 0, 0, rank, 4)) for rank in range(4)] == [1] * 4


# classes


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("none", [60, 5, 12, 0, 3]), ("balanced", [20, 20, 20, 0, 20]), ("undersample", [3, 3, 3, 0, 3])],
)
def test_classes_of_an_epoch(kind, counts):
    for epoch in (0, 1):
        drawn = sampling(kind=kind).draw(0, epoch)
        assert np.bincount(GRADES[drawn], minlength=5).tolist() == counts
    assert len(TrainSampler(sampling(kind=kind), 0, 0, 1)) == sum(counts)


def test_progressive_goes_from_balanced_to_its_final_weights():
    # references.md: w_t = r^(t-1) w_0 + (1 - r^(t-1)) w_f, with w_0 = N / n_k and t from 1
    own, epochs = np.array([60, 5, 12, 0, 3]), (0, 1, 30, 10_000)
    start, final = 80 / np.maximum(own, 1), np.array([1, 2, 2, 2, 2])
    for epoch in epochs:
        weights = own * (0.975**epoch * start + (1 - 0.975**epoch) * final)
        counts = sampling(kind="progressive").counts(epoch)
        assert counts.sum() == 80
        np.testing.assert_allclose(counts, 80 * weights / weights.sum(), atol=1)
    assert sampling(kind="progressive").counts(0).tolist() == [20, 20, 20, 0, 20]
    assert sampling(kind="progressive").counts(10_000).tolist() == [48, 8, 19, 0, 5]  # shares 60, 10, 24, 6 of 100


def test_eyepacs_starts_with_the_weights_of_the_second_place():
    own = np.array([25810, 2443, 5292, 873, 708])
    np.testing.assert_allclose(own.sum() / own, [1.36, 14.4, 6.64, 40.2, 49.6], rtol=5e-3)
    counts = sampling(np.repeat(np.arange(5), own), "progressive").counts(0)
    assert counts.tolist() == [7026, 7025, 7025, 7025, 7025]


def test_no_image_repeats_before_all_images_of_its_class_occur():
    drawn = sampling(kind="balanced").draw(0, 0)
    times = np.bincount(drawn, minlength=80)
    for target, (least, most) in {0: (0, 1), 1: (4, 4), 2: (1, 2), 4: (6, 7)}.items():
        assert (times[target == GRADES].min(), times[target == GRADES].max()) == (least, most)
    left_out = [set(range(60)) - set(sampling(kind="balanced").draw(0, epoch)) for epoch in (0, 1)]
    assert left_out[0] != left_out[1]


def test_repeats_count_the_draws_of_an_image_in_order():
    sampler = TrainSampler(sampling(kind="balanced"), 0, 0, 1)
    seen: dict[int, int] = {}
    for epoch, index, repeat in sampler:
        assert (epoch, repeat) == (0, seen.get(index, 0))
        seen[index] = repeat + 1
    assert max(seen.values()) == 7


@pytest.mark.parametrize("kind", ["balanced", "undersample", "progressive"])
def test_ranks_share_one_global_sample(kind):
    parts = [list(TrainSampler(sampling(kind=kind), 3, rank, 2)) for rank in (0, 1)]
    whole = list(TrainSampler(sampling(kind=kind), 3, 0, 1))
    assert [key for pair in zip(*parts, strict=True) for key in pair] == whole


# evaluation


@pytest.mark.parametrize(("length", "world_size"), [(8, 1), (8, 2), (7, 2), (7, 3), (1, 4)])
def test_evaluation_counts_each_image_once(length, world_size):
    parts = [EvaluationSampler(length, rank, world_size) for rank in range(world_size)]
    drawn = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(indices) for indices in drawn]
    assert len({len(indices) for indices in drawn}) == 1  # every rank has images in every batch
    together = [index for indices in drawn for index in indices]
    assert sorted(index for index in together if index >= 0) == list(range(length))
    assert together.count(-1) == -length % world_size
    assert set(together) <= {-1, *range(length)}


def test_evaluation_keeps_the_order():
    assert list(EvaluationSampler(5, 0, 1)) == [0, 1, 2, 3, 4]
    assert list(EvaluationSampler(5, 1, 2)) == [1, 3, -1]
