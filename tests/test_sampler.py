"""The order of the images: a function of seed, epoch and rank."""

import numpy as np
import pytest
from torch.utils.data import BatchSampler

from resnet_lab.data.sampler import EvaluationSampler, TrainSampler


def draw(length, seed, epoch, rank=0, world_size=1):
    sampler = TrainSampler(length, seed, rank, world_size)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_image_once_with_its_epoch():
    order = draw(50, seed=0, epoch=3)
    assert {epoch for epoch, _ in order} == {3}
    assert sorted(index for _, index in order) == list(range(50))
    assert [index for _, index in order] != list(range(50))
    assert all(type(index) is int for _, index in order)


def test_order_depends_on_seed_and_epoch_alone():
    np.random.seed(1)
    first = draw(50, seed=0, epoch=1)
    np.random.seed(2)
    assert draw(50, seed=0, epoch=1) == first
    orders = {tuple(index for _, index in draw(50, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


def test_resumed_epoch_has_the_order_of_an_uninterrupted_run():
    sampler, orders = TrainSampler(20, 5, 0, 1), []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
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
    assert [len(part) for part in parts] == [len(TrainSampler(7, 0, rank, 3)) for rank in range(3)] == [3, 3, 3]
    dealt = [parts[place % 3][place // 3] for place in range(9)]
    assert dealt == whole + whole[:2]


def test_more_ranks_than_images():
    assert [len(draw(1, 0, 0, rank, 4)) for rank in range(4)] == [1] * 4


@pytest.mark.parametrize(("length", "world_size"), [(8, 1), (8, 2), (7, 2), (7, 3), (1, 4)])
def test_evaluation_counts_each_image_once(length, world_size):
    parts = [EvaluationSampler(length, rank, world_size) for rank in range(world_size)]
    drawn = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(indices) for indices in drawn]
    assert len({len(indices) for indices in drawn}) == 1  # every rank takes part in every batch
    together = [index for indices in drawn for index in indices]
    assert sorted(index for index in together if index >= 0) == list(range(length))
    assert together.count(-1) == -length % world_size
    assert set(together) <= {-1, *range(length)}


def test_evaluation_keeps_the_order():
    assert list(EvaluationSampler(5, 0, 1)) == [0, 1, 2, 3, 4]
    assert list(EvaluationSampler(5, 1, 2)) == [1, 3, -1]
