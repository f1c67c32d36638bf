from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from branchwork.datasets.batches import batches, count_batches, epoch_order, hold_out, normalise, train_and_validation
from branchwork.datasets.dataset import Split
from branchwork.errors import DataError


def split_of(labels: list[int]) -> Split:
    count = len(labels)
    return Split(torch.arange(count, dtype=torch.int32).view(count, 1, 1, 1), torch.tensor(labels))


@given(st.lists(st.integers(10, 40), min_size=1, max_size=5), st.integers(0, 2**40), st.sampled_from([0.1, 0.25, 0.5]))
def test_holding_out_takes_the_same_share_of_every_class_and_loses_nothing(counts, seed, fraction):
    whole = split_of([label for label, count in enumerate(counts) for _ in range(count)])
    train, validation = hold_out(whole, fraction, seed)
    assert torch.bincount(validation.labels).tolist() == [round(fraction * count) for count in counts]
    ids = torch.cat([train.images, validation.images]).flatten()
    assert sorted(ids.tolist()) == list(range(len(whole)))
    again = hold_out(whole, fraction, seed)[1]
    assert torch.equal(again.images, validation.images)


def test_another_seed_holds_out_others():
    whole = split_of([0] * 100)
    assert not torch.equal(hold_out(whole, 0.5, 0)[1].images, hold_out(whole, 0.5, 1)[1].images)


def test_nothing_is_held_out_with_a_fraction_of_zero_and_too_few_images_are_an_error():
    train, validation = hold_out(split_of([0, 1]), 0.0, 0)
    assert len(train) == 2 and len(validation) == 0
    with pytest.raises(DataError, match="class 1 has 3 images, too few to hold out 10%"):
        hold_out(split_of([0] * 30 + [1] * 3), 0.1, 0)


def test_a_part_of_every_class_is_trained_on_and_validation_is_as_it_would_be(small):
    train, validation = train_and_validation(small, 0.1, 3)
    few, same = train_and_validation(small, 0.1, 3, used=0.2)
    assert torch.equal(same.images, validation.images)
    counts = torch.bincount(train.labels)
    assert torch.bincount(few.labels).tolist() == [round(0.2 * count) for count in counts.tolist()]
    numbered = replace(small, train=split_of([0] * 40 + [1] * 30 + [2]))
    chosen = [train_and_validation(numbered, 0.0, seed, used=0.1)[0].images.flatten().tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    # In the order of the data, none twice, and one at least of the rarest class.
    assert chosen[0] == sorted(set(chosen[0])) and len(chosen[0]) == 8 and chosen[0][-1] == 70


@given(st.integers(0, 300), st.integers(0, 2**62), st.integers(0, 1000))
def test_an_order_is_a_permutation_and_a_function_of_its_arguments(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, epoch_order(count, seed, epoch))


def test_orders_of_neighbouring_seeds_and_epochs_differ_and_global_state_is_not_touched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    orders = [epoch_order(50, seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 16
    assert torch.equal(before, torch.get_rng_state())


def test_an_order_is_the_same_on_every_machine():
    assert epoch_order(6, 0, 0).tolist() == [0, 2, 3, 1, 5, 4]


@given(st.integers(0, 100), st.integers(1, 30), st.integers(0, 5))
def test_batches_go_through_the_order_from_any_batch_on(count, size, start):
    order = torch.arange(count)
    parts = list(batches(order, size, start))
    whole = list(batches(order, size))
    assert torch.equal(torch.cat([order[:0], *whole]), order) and len(whole) == count_batches(count, size)
    assert [part.tolist() for part in parts] == [part.tolist() for part in whole[start:]]
    assert all(len(part) == size for part in whole[:-1])
    # No image is alone, of which a batch norm has no variance, unless all are.
    assert all(1 < len(part) <= size + 1 for part in whole) or size == 1 or count == 1


def test_normalise_is_the_formula_in_float64():
    images = torch.randint(0, 256, (3, 2, 5, 4), dtype=torch.uint8)
    mean, std = (0.1307, 0.5), (0.3081, 0.25)
    for channel in range(2):
        by_hand = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        ours = normalise(images, mean, std)[:, channel]
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), by_hand, rtol=1e-6, atol=1e-6)
