"""Classes out of order are named, weak and odd models are not suspected."""

import numpy as np
import pytest

from adv_ssl.evaluation import class_order

CLASSES = 20


def decided(accuracy: float, each: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(said, labels) of a model of that accuracy whose mistakes are anything."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), each))
    mistakes = rng.integers(0, CLASSES, len(labels))
    return np.where(rng.random(len(labels)) < accuracy, labels, mistakes), labels


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_model_in_order_is_not_suspected(accuracy):
    for seed in range(20):
        assert class_order.moved(*decided(accuracy, seed=seed), CLASSES) == []


def test_two_classes_that_changed_places_are_named():
    said, labels = decided(0.9)
    swapped = np.arange(CLASSES)
    swapped[[3, 7]] = 7, 3
    assert class_order.moved(swapped[said], labels, CLASSES) == [(3, 7), (7, 3)]


def test_the_order_of_a_sort_by_names_is_seen():
    """F10: 0, 1, 10, 11, ..., 2, 3: all classes but the first two are others."""
    said, labels = decided(0.9, each=40)
    sort = np.argsort([str(i) for i in range(CLASSES)])
    expected = [(label, int(np.flatnonzero(sort == label)[0])) for label in range(2, CLASSES)]
    assert class_order.moved(np.argsort(sort)[said], labels, CLASSES) == expected


def test_a_model_that_says_always_the_same_is_no_order():
    _, labels = decided(0.5)
    for said in range(CLASSES):
        assert class_order.moved(np.full_like(labels, said), labels, CLASSES) == []


def test_classes_that_are_mistaken_for_one_another_are_no_order():
    """Twins that the model cannot tell apart, as maillot and maillot."""
    said, labels = decided(1.0, each=40)
    twins = np.isin(labels, (3, 7))
    said[twins] = np.random.default_rng(1).choice((3, 7), twins.sum())
    assert class_order.moved(said, labels, CLASSES) == []


def test_an_image_of_each_class_proves_nothing():
    labels = np.arange(CLASSES)
    assert class_order.moved(np.roll(labels, 1), labels, CLASSES) == []
