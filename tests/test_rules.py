"""The rules of scoring, by answers worked out by hand and by the numbers the paper prints."""

import itertools

import numpy as np
import pytest

from adv_ssl.data.corruptions import TYPES
from adv_ssl.errors import UserError
from adv_ssl.evaluation import rules, suites


def logits_for(*tops: dict[int, float]) -> np.ndarray:
    """[N, 1000], all -9 but what is given: {class: logit} of each image."""
    logits = np.full((len(tops), 1000), -9, np.float32)
    for row, top in zip(logits, tops, strict=True):
        row[list(top)] = list(top.values())
    return logits


# ---- one image ------------------------------------------------------------------------------


def test_top1_is_the_largest_logit():
    scored = suites.top1(np.array([[0, 2, 1], [3, 2, 1], [0, 0, -1]]), np.array([1, 1, 0]))
    np.testing.assert_array_equal(scored.right, [True, False, True])
    assert scored.counts == {"top1": (2, 3)}


def test_restricted_top1_sees_the_classes_of_the_set_alone():
    # 5 is no class of ImageNet-A; 6 and 11 are its first two.
    logits = logits_for({5: 4, 6: 2, 11: 1}, {5: 4, 6: 1, 11: 2}, {988: 1})
    labels = np.array([6, 6, 988])
    classes = rules.restricted_classes("a")
    np.testing.assert_array_equal(suites.top1(logits, labels).right, [False, False, True])
    predicted = rules.restricted_decisions(logits, labels, classes)
    np.testing.assert_array_equal(predicted == labels, [True, False, True])


def test_a_label_outside_the_restricted_classes_is_refused():
    logits = logits_for({1: 1})
    assert rules.restricted_decisions(logits, np.array([1]), rules.restricted_classes("r")) == [1]
    with pytest.raises(UserError, match=r"^label 1 is none of the 200 classes .*this data set\.$"):
        rules.restricted_decisions(logits, np.array([1]), rules.restricted_classes("a"))


# ---- class lists ----------------------------------------------------------------------------


def test_the_class_lists_are_those_of_the_data_sets():
    a, r = rules.restricted_classes("a"), rules.restricted_classes("r")
    for classes in (a, r):
        assert len(set(classes)) == 200
        assert list(classes) == sorted(classes)
        assert 0 <= min(classes) <= max(classes) <= 999
    assert len(set(a) & set(r)) == 86
    assert a[:3] == (6, 11, 13)
    assert r[:3] == (1, 2, 4)
    conflict = rules.conflict_classes()
    assert tuple(conflict) == (
        "airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock",
        "dog", "elephant", "keyboard", "knife", "oven", "truck",
    )  # fmt: skip
    indices = list(itertools.chain(*conflict.values()))
    assert len(indices) == len(set(indices)) == 207
    assert conflict["airplane"] == (404,)
    assert conflict["bear"] == (294, 295, 296, 297)
    assert conflict["bicycle"] == (444, 671)


def test_the_lists_give_each_index_one_wnid_and_in_their_order():
    wnids = {}
    for name in ("imagenet_a_indices", "imagenet_r_indices", "conflict_16_classes"):
        for row in rules._rows(f"{name}.csv"):
            index, wnid = int(row["imagenet_index"]), row["wnid"]
            assert wnids.setdefault(index, wnid) == wnid
    assert [wnids[index] for index in sorted(wnids)] == sorted(wnids.values())  # F11


def test_conflict_classes_are_those_which_the_real_set_names(real_data):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source("geirhos_conflict_stimuli", split="test", data_dir=real_data)
    named = list(rules.conflict_classes().values())
    for i in range(0, len(source), 10):
        example = source[i]
        for cue in ("shape", "texture"):
            expected = named[int(example[f"{cue}_label"])]
            assert sorted(example[f"{cue}_imagenet_labels"]) == list(expected)


# ---- cue conflict ---------------------------------------------------------------------------


def test_a_conflict_class_has_the_mean_probability_of_its_indices():
    # Airplane has one index, bear four: 0.3 against 0.1 each on the mean, against 0.4 in the sum.
    with np.errstate(divide="ignore"):
        probabilities = np.zeros((1, 1000))
        probabilities[0, [404, 294, 295, 296, 297]] = 0.3, 0.1, 0.1, 0.1, 0.1
        probabilities[0, 0] = 0.3  # of none of the 16 classes: a tench
        logits = np.log(probabilities).astype(np.float32)
    assert rules.conflict_decisions(logits).tolist() == [0]
    assert rules.conflict_decisions(logits, np.sum).tolist() == [1]
    # The mean is of probabilities, not of logits: one sure bear among four is a bear.
    sure = logits_for({294: 9, 404: 7})
    assert sure[0, [294, 295, 296, 297]].mean() < sure[0, 404]
    assert rules.conflict_decisions(sure).tolist() == [1]


def test_conflict_counts_of_ten_images():
    shapes = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    textures = np.array([1, 1, 2, 1, 0, 2, 0, 1, 1, 0])  # images 3 and 5 are of one class
    decisions = np.array([0, 1, 5, 1, 1, 7, 0, 3, 1, 3])
    assert rules.conflict_counts(decisions, shapes, textures) == {
        "shape_top1": (5, 10),  # images 0, 3, 4, 7, 9
        "shape_top1_conflict": (4, 8),
        "shape_top1_conflict_of_all": (4, 10),
        "texture_top1_conflict": (3, 8),  # images 1, 6, 8
        "shape_bias": (4, 7),
    }


def test_a_model_that_sees_neither_cue_has_no_shape_bias():
    counts = rules.conflict_counts(np.array([5, 6]), np.array([0, 1]), np.array([1, 0]))
    assert counts["shape_bias"] == (0, 0)
    assert counts["shape_top1"] == (0, 2)


def test_a_classifier_of_cifar10_decides_between_the_classes_of_both_sets():
    logits = np.zeros((3, 10))
    logits[0, 8] = 1.0  # a ship is a boat
    logits[1, [4, 1]] = 2.0, 1.0  # a deer is no class of the stimuli: the car is next
    logits[2, 9] = 1.0
    decided = [
        list(rules.conflict_classes())[i] for i in rules.conflict_decisions_of_cifar10(logits)
    ]
    assert decided == ["boat", "car", "truck"]


def test_conflict_counts_of_a_classifier_of_cifar10():
    airplane, bear, bird, clock = (list(rules.conflict_classes()).index(name) for name in
                                   ("airplane", "bear", "bird", "clock"))  # fmt: skip
    shapes = np.array([airplane, airplane, airplane, bear, bird, bird, clock])
    textures = np.array([airplane, bird, bear, bird, clock, airplane, bear])
    decisions = np.array([airplane, airplane, bird, bird, bird, airplane, bird])
    assert rules.conflict_counts_of_cifar10(decisions, shapes, textures) == {
        "shape_top1": (3, 5),  # 0, 1, 4 of the airplanes and the birds
        "shape_top1_conflict": (2, 4),
        "texture_top1_conflict": (2, 3),  # 3 and 5 of 1, 3, 5
        "shape_bias": (1, 2),  # 1 against 5
    }


# ---- corruptions ----------------------------------------------------------------------------


def cells(score) -> dict[tuple[str, int], float]:
    return {(name, s): score(name, s) for name in TYPES for s in range(1, 6)}


def test_alexnet_is_the_unit_of_mce():
    assert tuple(rules.ALEXNET_ERRORS) == TYPES
    assert np.mean(list(rules.ALEXNET_ERRORS.values())) == pytest.approx(0.789, abs=5e-4)  # F2
    alexnet = cells(lambda name, severity: 1 - rules.ALEXNET_ERRORS[name])
    assert rules.corruption_mce(alexnet) == pytest.approx(1)
    # Each type weighs the same, whatever its error; each severity within it, too.
    mixed = cells(
        lambda name, s: 1 - rules.ALEXNET_ERRORS[name] * (s / 3 if name == "brightness" else 0.5)
    )
    assert rules.corruption_mce(mixed) == pytest.approx((14 * 0.5 + 1) / 15)


def test_mce_of_a_uniform_model():
    inverse = np.mean([1 / error for error in rules.ALEXNET_ERRORS.values()])
    assert rules.corruption_mce(cells(lambda name, s: 0.6)) == pytest.approx(0.4 * inverse)
