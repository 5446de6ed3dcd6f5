"""RandAugment: each operation against timm's pixels, and what is drawn against its distribution."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from adv_ssl.data import randaugment as module
from adv_ssl.data.randaugment import FILL, OPS, RandAugment, randaugment
from adv_ssl.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"
REFERENCE = RandAugment(ops=2, prob=0.5, magnitude=9.0, magnitude_std=0.5)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "randaugment.npz") as file:
        return dict(file)


def test_there_are_the_fifteen_operations(golden):
    assert len(OPS) == 15
    assert golden.keys() - {"image", "magnitudes"} == OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_that_of_timm(name, golden):
    image = Image.fromarray(golden["image"])
    for i, sign in enumerate((1, -1)):
        for j, magnitude in enumerate(golden["magnitudes"]):
            made = np.asarray(OPS[name](image, float(magnitude), sign))
            np.testing.assert_array_equal(made, golden[name][i, j], err_msg=f"{sign} {magnitude}")


def test_the_values_at_magnitude_9():
    """What the specification writes out."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.repeat(ramp[..., None], 3, -1))

    def at(name: str, magnitude: float = 9.0) -> np.ndarray:
        return np.asarray(OPS[name](image, magnitude, 1))[..., 0].ravel()

    assert set(at("Posterize")) == {0, 128}  # 1 bit
    assert set(at("Posterize", 10.0)) == {0}  # 0 bits
    before = np.arange(256)
    np.testing.assert_array_equal(at("Solarize"), np.where(before < 26, before, 255 - before))
    added = np.where(before < 128, np.minimum(255, before + 99), before)
    np.testing.assert_array_equal(at("SolarizeAdd"), added)
    np.testing.assert_array_equal(at("Brightness"), np.minimum(255, (before * 1.81).astype(int)))


def test_what_comes_in_from_outside_is_grey():
    white = Image.fromarray(np.full((40, 60, 3), 255, np.uint8))
    moved = np.asarray(OPS["TranslateX"](white, 9.0, 1))
    np.testing.assert_array_equal(moved[20, -1], FILL)
    filled = (moved == FILL).all(-1)[20].sum()
    assert abs(filled - 0.405 * 60) <= 2


@pytest.fixture
def drawn(monkeypatch):
    """What the operations are called with: name, magnitude, sign."""
    calls = []

    def record(name):
        def operation(image, magnitude, sign):
            calls.append((name, magnitude, sign))
            return image

        return operation

    monkeypatch.setattr(module, "_OPERATIONS", tuple(map(record, OPS)))
    return calls


def test_frequencies(drawn):
    image, rng = np.zeros((4, 4, 3), np.uint8), np.random.default_rng(0)
    per_image, twice, count = [], 0, 6000
    for _ in range(count):
        before = len(drawn)
        randaugment(image, rng, REFERENCE)
        names = [name for name, *_ in drawn[before:]]
        per_image.append(len(names))
        twice += len(names) == 2 and names[0] == names[1]
    done = np.bincount(per_image) / count  # each of two with probability a half
    np.testing.assert_allclose(done, [0.25, 0.5, 0.25], atol=0.03)
    names = [name for name, *_ in drawn]
    share = np.array([names.count(name) for name in OPS]) / len(names)
    np.testing.assert_allclose(share, 1 / 15, atol=4 * (14 / 225 / len(names)) ** 0.5)
    assert twice / (done[2] * count) == pytest.approx(1 / 15, abs=0.03)  # with replacement
    magnitudes, signs = np.array([(m, s) for _, m, s in drawn]).T
    assert magnitudes.max() == 10.0
    assert magnitudes.mean() == pytest.approx(9.0, abs=0.04)
    assert np.mean(magnitudes == 10.0) == pytest.approx(0.0228, abs=0.008)  # beyond two deviations
    assert magnitudes.std() == pytest.approx(0.5, rel=0.05)
    assert signs.mean() == pytest.approx(0.0, abs=0.05)
    assert set(signs) == {-1, 1}


def test_the_draws_of_one_image_are_independent(drawn):
    image, rng = np.zeros((4, 4, 3), np.uint8), np.random.default_rng(0)
    always = RandAugment(ops=2, prob=1.0, magnitude=5.0, magnitude_std=0.5)
    for _ in range(2000):
        randaugment(image, rng, always)
    positions = np.array([[list(OPS).index(name), m, s] for name, m, s in drawn])
    first, second = positions[::2], positions[1::2]
    every = np.concatenate([first, second], axis=1)  # operation, magnitude, sign, twice
    correlated = np.corrcoef(every, rowvar=False) - np.eye(6)
    assert np.abs(correlated).max() < 0.09  # four deviations of 1 / sqrt(2000)


def test_the_second_operation_sees_what_the_first_made(monkeypatch):
    def add_one(image, magnitude, sign):
        return image.point(lambda value: value + 1)

    monkeypatch.setattr(module, "_OPERATIONS", (add_one,) * len(OPS))
    three = RandAugment(ops=3, prob=1.0, magnitude=9.0, magnitude_std=0.5)
    made = randaugment(np.zeros((2, 3, 3), np.uint8), np.random.default_rng(0), three)
    assert (made == 3).all()


def test_magnitudes_are_clipped_at_both_ends(drawn):
    image, rng = np.zeros((4, 4, 3), np.uint8), np.random.default_rng(0)
    for _ in range(200):
        randaugment(image, rng, RandAugment(ops=2, prob=1.0, magnitude=5.0, magnitude_std=10.0))
    magnitudes = {m for _, m, _ in drawn}
    assert (min(magnitudes), max(magnitudes)) == (0.0, 10.0)


@pytest.mark.parametrize("name", OPS)
def test_a_grey_image_stays_grey_inside(name):
    """The channels are treated alike; only what comes in from outside has a colour."""
    grey = np.random.default_rng(1).integers(0, 256, (24, 20, 1)).astype(np.uint8).repeat(3, -1)
    for sign in (1, -1):
        made = np.asarray(OPS[name](Image.fromarray(grey), 1.0, sign))[6:-6, 6:-6]
        np.testing.assert_array_equal(made, made[..., :1].repeat(3, -1))


@pytest.mark.parametrize("shape", [(16, 16), (7, 31), (1, 5), (5, 1), (1, 1)])
def test_any_shape_stays_and_the_same_chance_gives_the_same_image(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    kept = image.copy()
    for seed in range(40):
        a, b = (randaugment(image, np.random.default_rng(seed), REFERENCE) for _ in range(2))
        np.testing.assert_array_equal(a, b)
        assert (a.shape, a.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((0, 0.5, 9.0, 0.5), "ops=0: must be 1 or more"),
        ((2, 1.5, 9.0, 0.5), r"prob=1\.5: must be in \[0, 1\]"),
        ((2, -0.5, 9.0, 0.5), r"prob=-0\.5: must be in \[0, 1\]"),
        ((2, 0.5, 11.0, 0.5), r"magnitude=11\.0: must be in \[0, 10\]"),
        ((2, 0.5, -1.0, 0.5), r"magnitude=-1\.0: must be 0 or more"),
        ((2, 0.5, 9.0, -0.5), r"magnitude_std=-0\.5: must be 0 or more"),
        ((2, 0.5, 9.0, float("nan")), r"magnitude_std=nan: must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        RandAugment(*options)
