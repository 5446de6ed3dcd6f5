"""Scores: each image once, the same whatever the batch, honest intervals."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from conftest import TINY, random_classifier

from adv_ssl import pictures, preemption
from adv_ssl.config import Evaluation, parse
from adv_ssl.data.sources import Records, Source
from adv_ssl.evaluation import scores
from adv_ssl.files import read_arrays
from adv_ssl.models.vit import ViT
from adv_ssl.tasks.classifier import classify

CLASSES = 3


class Images:
    """Random images whose labels are counted."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        self.labels = rng.integers(0, CLASSES, count)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return {"image": self.pixels[i], "label": int(self.labels[i])}


@pytest.fixture(scope="module")
def setting():
    params = random_classifier(CLASSES)
    # A head that says something: random weights of a useful size.
    noise = np.random.default_rng(1).standard_normal((TINY.width, CLASSES)).astype(np.float32)
    params["head"]["kernel"] = noise
    return params, Source(Images(23), CLASSES, tuple("abc"))


def options(batch_size, attacks=()):
    return Evaluation("test", 8, batch_size, attacks, 100, 2.5)


def all_scores(setting, batch_size):
    params, source = setting
    made = options(batch_size, (("linf", 4 / 255, 3), ("l2", 0.5, 3)))
    attacks = [None, *made.make_attacks()]
    return [scores.score(TINY, params, source, made, attack, 0) for attack in attacks]


def test_the_batch_size_changes_nothing(setting):
    """23 images in batches of 5, 8 and 23: each counted once, each with its own noise."""
    reference = all_scores(setting, 23)
    for batch_size in (5, 8):
        for ours, theirs in zip(all_scores(setting, batch_size), reference, strict=True):
            assert ours["n"] == 23
            assert ours["value"] == theirs["value"]


def test_accuracy_is_counted_by_hand(setting):
    params, source = setting
    images = source.records.pixels.astype(np.float32) / 255
    logits = classify(ViT(TINY), params, images, None)
    expected = (np.argmax(logits, -1) == source.records.labels).mean()
    assert all_scores(setting, 8)[0]["value"] == expected
    assert 0 < expected < 1


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_score_parts_that_are_the_whole(hosts, setting, monkeypatch):
    params, source = setting
    whole = scores.count_correct(TINY, None, params, source, options(8), jax.random.key(0))
    monkeypatch.setattr(scores.hosts, "total", lambda counts: counts)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    parts = []
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        part = scores.count_correct(TINY, None, params, source, options(8), jax.random.key(0))
        parts.append(part[:2])
    assert tuple(np.sum(parts, axis=0)) == whole[:2]


def test_a_stop_is_heeded_between_batches(setting, monkeypatch):
    params, source = setting
    preemption._asked.set()
    monkeypatch.setattr(scores, "attacked", None)
    with pytest.raises(preemption.Preempted):
        scores.count_correct(TINY, None, params, source, options(8), jax.random.key(0))


def test_a_gallery_shows_the_images_and_what_the_model_says_of_them(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES", 20)
    params, source = setting
    pixels, labels = source.records.pixels, source.records.labels
    records = Records("noise", 23, CLASSES, lambda i: (pixels[i], labels[i]))
    source = Source(records, CLASSES, ("a", "b", "c"))
    config = parse(tiny.config("nominal", "rotnet").to_dict())
    evaluation = options(23, (("l2", 2.0, 8),))
    config = dataclasses.replace(config, model=TINY, evaluate=evaluation)
    pictures.classified(config, params, "step 1", source, tmp_path)
    shown = read_arrays(tmp_path / "gallery.npz")
    images = pixels[:20].astype(np.float32) / 255
    np.testing.assert_allclose(shown["clean_input"], images, atol=1e-6)
    np.testing.assert_array_equal(shown["label"], labels[:20])
    distance = np.linalg.norm((shown["attacked_input"] - images).reshape(20, -1), axis=1)
    assert np.all((distance > 1.0) & (distance <= 2.0 + 1e-5))
    assert (shown["clean_prediction"] != shown["attacked_prediction"]).any()
    for kind in ("clean", "attacked"):
        logits = classify(ViT(TINY), params, shown[f"{kind}_input"], None)
        np.testing.assert_array_equal(shown[f"{kind}_prediction"], logits.argmax(-1))


def test_an_attack_never_helps(setting):
    clean, *attacked = all_scores(setting, 8)
    assert all(record["value"] <= clean["value"] for record in attacked)
    assert min(record["value"] for record in attacked) < clean["value"]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 4 / 255), ("l2", 0.5)])
def test_an_image_is_attacked_alike_in_any_batch_within_its_radius(norm, epsilon, setting):
    params, _ = setting
    attack = options(8, ((norm, epsilon, 2),)).make_attacks()[0]
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)
    batch = {"image": images, "label": np.zeros(4, np.int32), "index": np.arange(4, dtype=np.int32)}
    last = {key: value[3:] for key, value in batch.items()}
    whole, _ = scores.attacked(TINY, attack, params, batch, jax.random.key(0))
    alone, _ = scores.attacked(TINY, attack, params, last, jax.random.key(0))
    np.testing.assert_allclose(whole[3], alone[0], atol=1e-5)
    moved = (np.asarray(whole) - images.astype(np.float32) / 255).reshape(4, -1)
    radii = np.linalg.norm(moved, ord=np.inf if norm == "linf" else 2, axis=1) / epsilon
    assert np.all((radii > 0.8) & (radii <= 1 + 1e-5)), radii


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (360, 400, 0.8667, 0.9257),
    ],
)
def test_the_interval_is_wilsons(correct, n, low, high):
    """Values by the closed form (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    np.testing.assert_allclose(scores.wilson(correct, n), [low, high], atol=1e-4)
