"""Splits are stratified, disjoint, complete and the same for ever; statistics are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digits.data.split import count_shared, keep_in_place, pixel_counts, statistics, stratified

labels_lists = st.lists(st.integers(0, 4), min_size=1, max_size=200)


@settings(max_examples=150, deadline=None)
@given(labels_lists, st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_every_image_lands_in_one_part_and_every_class_gives_its_share(
    values: list[int], share: float, seed: int
) -> None:
    labels = np.array(values, np.uint8)
    rest, taken = stratified(labels, share, seed)
    assert sorted([*rest, *taken]) == list(range(len(labels)))
    for label in np.unique(labels):
        assert (labels[taken] == label).sum() == round(share * (labels == label).sum())


def test_a_seed_means_the_same_images_for_ever() -> None:
    labels = np.arange(100).astype(np.uint8) % 10
    _, taken = stratified(labels, 0.1, seed=1)
    assert taken.tolist() == [20, 23, 25, 47, 64, 68, 69, 76, 82, 91]
    assert taken.tolist() == stratified(labels, 0.1, seed=1)[1].tolist()
    assert taken.tolist() != stratified(labels, 0.1, seed=2)[1].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1500), st.floats(0, 1), st.integers(0, 99))
def test_keeping_in_place_gives_the_kept_images(count: int, share: float, seed: int) -> None:
    values = np.arange(count, dtype=np.int64).astype(np.uint8).reshape(count, 1)
    kept = np.flatnonzero(np.random.default_rng(seed).random(count) < share)
    expected = values[kept].copy()
    assert np.array_equal(keep_in_place(values, kept), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1100), st.integers(0, 99))
def test_pixel_statistics_are_those_of_numpy(count: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, 2, 2), np.uint8)
    mean, std = statistics(pixel_counts(images))
    assert mean == pytest.approx((images / 255).mean(), rel=1e-12)
    assert std == pytest.approx((images / 255).std(), rel=1e-9)


def test_images_that_occur_on_both_sides_are_counted() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert count_shared(images[:2], images[1:]) == 1
    assert count_shared(images[:1], images[1:]) == 0
