"""AutoAttack: who runs on what, what may be saved between, and a model with known distances."""

import functools
import itertools

import numpy as np
import pytest
from robust import (
    CLASSES,
    SHAPE,
    classify,
    distances,
    images,
    keys,
    linear_classify,
    linear_distances,
    mlp_params,
    predicted,
)  # fmt: skip
from test_sharding import run_python

from adv_ssl.attacks import BALLS, pgd
from adv_ssl.errors import UserError
from adv_ssl.robustness import autoattack as module
from adv_ssl.robustness.autoattack import (
    ATTACKS,
    CLEAN,
    PGD,
    STANDS,
    Budget,
    Verdict,
    autoattack,
)
from adv_ssl.robustness.losses import margin

BUDGET = Budget(steps=20, targets=9, queries=60)
COUNT, BATCH = 21, 8  # a last batch that is not full
RADIUS = {"linf": 0.015, "l2": 0.08}


def setting() -> tuple[dict, np.ndarray, np.ndarray]:
    """A model, images, and their labels, three of which the model does not say."""
    params, x = mlp_params(), images(COUNT, seed=3)
    labels = predicted(params, x)
    labels[[2, 9, 17]] = (labels[[2, 9, 17]] + 1) % CLASSES
    return params, x, labels


def verdicts(norm, rows=slice(None), model=classify, budget=BUDGET, epsilon=None, **options):
    params, x, labels = setting()
    return list(
        autoattack(
            model, params, x[rows], labels[rows], np.arange(COUNT)[rows], norm=norm,
            epsilon=RADIUS[norm] if epsilon is None else epsilon, batch_size=BATCH, budget=budget,
            **options,
        )
    )  # fmt: skip


def assert_same(verdict, other, rows=slice(None)) -> None:
    np.testing.assert_array_equal(verdict.broken_by, other.broken_by[rows])
    np.testing.assert_array_equal(verdict.x_adv, other.x_adv[rows])


@pytest.fixture(scope="module", params=list(BALLS))
def whole(request):
    """(norm, the verdicts on all images)"""
    return request.param, verdicts(request.param)


def test_verdicts_come_in_order_and_only_grow(whole):
    _, results = whole
    names = (CLEAN, *ATTACKS)
    assert names == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert [result.done for result in results] == [names[: i + 1] for i in range(5)]
    for before, after in itertools.pairwise(results):
        fell = before.broken_by != STANDS
        np.testing.assert_array_equal(after.broken_by[fell], before.broken_by[fell])
        np.testing.assert_array_equal(after.x_adv[fell], before.x_adv[fell])
        assert set(after.broken_by[~fell]) <= {STANDS, after.done[-1]}
    assert set(np.flatnonzero(~results[0].robust)) == {2, 9, 17}
    assert 0.2 < results[-1].robust.mean() < 0.7


def test_broken_images_are_misclassified_in_the_ball_and_standing_ones_untouched(whole):
    norm, results = whole
    params, x, labels = setting()
    final = results[-1]
    assert np.all(predicted(params, final.x_adv)[~final.robust] != labels[~final.robust])
    assert distances(norm, final.x_adv, x).max() <= RADIUS[norm] * (1 + 1e-6)
    assert final.x_adv.min() >= 0
    assert final.x_adv.max() <= 1
    np.testing.assert_array_equal(final.x_adv[final.robust], x[final.robust])


@pytest.mark.parametrize("norm", BALLS)
def test_what_pgd_misclassifies_counts_as_broken(norm):
    """Its points lie at the edge of the ball, and rounding must not put them outside of it."""
    params, epsilon = mlp_params(), {"linf": 4 / 255, "l2": 0.1}[norm]
    x = (images(64, seed=4) * 255).round() / 255
    labels, places = predicted(params, x), np.arange(len(x))
    logits = functools.partial(classify, params)
    search = pgd(norm, epsilon, BUDGET.pgd_steps, 2.5 / BUDGET.pgd_steps)
    points, _ = search(lambda x: margin(logits(x), labels), x, keys(places))
    wrong = predicted(params, np.asarray(points)) != labels
    *_, verdict = autoattack(
        classify, params, x, labels, places, norm=norm, epsilon=epsilon,
        batch_size=len(x), attacks=(PGD,), budget=BUDGET,
    )  # fmt: skip
    assert 0.2 < wrong.mean() < 0.8
    assert (~verdict.robust).mean() == pytest.approx(wrong.mean(), abs=0.05)  # other starts
    assert distances(norm, verdict.x_adv, x).max() <= epsilon * (1 + 1e-6)


def test_work_goes_on_from_every_verdict(whole):
    norm, results = whole
    for i, saved in enumerate(results):
        before = Verdict(saved.done, saved.broken_by.copy(), saved.x_adv.copy())
        rest = verdicts(norm, verdict=saved)
        assert [result.done for result in rest] == [result.done for result in results[i + 1 :]]
        if rest:
            assert_same(rest[-1], results[-1])
        assert_same(saved, before)


def test_verdict_on_an_image_does_not_depend_on_the_others(whole):
    norm, results = whole
    rows = np.random.default_rng(0).permutation(COUNT)[:11]
    assert_same(verdicts(norm, rows)[-1], results[-1], rows)


def test_seed_decides_the_points(whole):
    norm, results = whole
    assert_same(verdicts(norm, seed=0)[-1], results[-1])
    other = verdicts(norm, seed=1)[1]
    assert np.any(other.x_adv != results[1].x_adv)


def test_index_of_an_image_decides_its_points(whole):
    norm, results = whole
    fallen = np.flatnonzero(results[1].broken_by == "apgd-ce")[0]
    params, x, labels = setting()
    copies, same = np.repeat(x[[fallen]], 3, 0), np.repeat(labels[[fallen]], 3)
    _, verdict, *_ = autoattack(
        classify, params, copies, same, np.array([5, 6, 5]), norm=norm, epsilon=RADIUS[norm],
        batch_size=BATCH, budget=BUDGET,
    )  # fmt: skip
    assert verdict.broken_by.tolist() == 3 * ["apgd-ce"]
    np.testing.assert_array_equal(verdict.x_adv[0], verdict.x_adv[2])
    assert np.any(verdict.x_adv[0] != verdict.x_adv[1])


def test_radius_and_parameters_compile_nothing(whole):
    """Of two images a batch is one quarter, whichever fall."""
    norm, _ = whole
    assert verdicts(norm, slice(0, 2), epsilon=1e-6)[-1].robust.all()
    compiled = module._run._cache_size()
    verdicts(norm, slice(1, 3), epsilon=2 * RADIUS[norm], seed=5)
    params, x, labels = setting()
    doubled = {name: 2 * value for name, value in params.items()}
    options = {"norm": norm, "epsilon": RADIUS[norm], "batch_size": BATCH, "budget": BUDGET}
    list(autoattack(classify, doubled, x[:2], labels[:2], np.arange(2), **options))
    assert module._run._cache_size() == compiled


ON_DEVICES = """
import jax, json, sys
sys.path.insert(0, "tests")
from test_autoattack import Budget, verdicts
*_, last = verdicts("l2", budget=Budget(steps=5), attacks=("apgd-ce",))
print(json.dumps([jax.device_count(), last.broken_by.tolist(), last.x_adv.sum((1, 2, 3)).tolist()]))
"""


def test_devices_change_nothing():
    """In batches of eight, one image on each device."""
    (one, fell, sums), (eight, *others) = (
        run_python(["-c", ON_DEVICES], devices) for devices in (1, 8)
    )
    assert (one, eight) == (1, 8)
    assert others[0] == fell
    assert 3 < fell.count(STANDS) < COUNT - 5
    np.testing.assert_allclose(others[1], sums, atol=1e-4)


def fake_run(monkeypatch, breaks):
    """Instead of the attacks: notes what they are given; ``breaks(attack, index, rank)`` tells."""
    calls = []

    def run(classify, attack, norm, budget, params, x, labels, indices, epsilon, key, rank):
        indices = np.asarray(indices).tolist()
        calls.append((attack, int(rank), indices))
        broken = np.array([breaks(attack, index, rank) for index in indices])
        return np.zeros_like(x), broken

    monkeypatch.setattr(module, "_run", run)
    return calls


def test_each_attack_and_target_has_the_standing_images_alone(monkeypatch):
    fallen = {(CLEAN, 0, 0), ("apgd-ce", 0, 1), ("apgd-t", 0, 2), ("apgd-t", 2, 3), ("fab-t", 3, 4)}
    calls = fake_run(monkeypatch, lambda a, i, r: (a, r, i) in fallen)
    final = verdicts("l2", slice(0, 7))[-1]
    expected = [
        (CLEAN, 0, [0, 1, 2, 3, 4, 5, 6, 6]),
        ("apgd-ce", 0, [1, 2, 3, 4, 5, 6]),
        ("apgd-t", 0, [2, 3, 4, 5, 6, 6]),
        ("apgd-t", 1, [3, 4, 5, 6]),
        ("apgd-t", 2, [3, 4, 5, 6]),
        ("apgd-t", 3, [4, 5, 6, 6]),
        *(("fab-t", rank, [4, 5, 6, 6]) for rank in range(4)),  # 5 classes: 4 wrong
        ("square", 0, [5, 6]),
    ]
    assert calls == expected
    assert final.broken_by.tolist() == [CLEAN, "apgd-ce", "apgd-t", "apgd-t", "fab-t", "", ""]


def test_no_more_than_the_nine_likeliest_classes_are_targets(monkeypatch):
    calls = fake_run(monkeypatch, lambda a, i, r: False)
    _, x, labels = setting()
    many = mlp_params(classes=20)
    list(autoattack(classify, many, x[:3], labels[:3], np.arange(3), norm="l2", epsilon=0.1))
    ranks = {name: [rank for attack, rank, _ in calls if attack == name] for name in ATTACKS}
    assert ranks == {"apgd-ce": [0], "apgd-t": [*range(9)], "fab-t": [*range(9)], "square": [0]}
    assert (Budget().steps, Budget().targets, Budget().queries) == (100, 9, 5000)


def test_when_all_have_fallen_no_attack_runs(monkeypatch):
    calls = fake_run(monkeypatch, lambda a, i, r: True)
    results = verdicts("linf", slice(0, 5))
    assert [attack for attack, _, _ in calls] == [CLEAN]
    assert len(results) == 5
    assert not results[-1].robust.any()


def test_exactly_the_images_within_the_radius_of_a_linear_model_fall():
    norm = "linf"
    rng = np.random.default_rng(4)
    slopes = rng.standard_normal((int(np.prod(SHAPE)), CLASSES)).astype(np.float32)
    params = {"slopes": slopes, "bias": -slopes.sum(0) / 2}
    x = images(32, low=0.3, high=0.7)
    labels = predicted(params, x, linear_classify)
    distance = linear_distances(norm, params, x, labels).min(1)
    epsilon = float(np.median(distance))
    *_, final = autoattack(
        linear_classify, params, x, labels, np.arange(32), norm=norm, epsilon=epsilon,
        batch_size=32, budget=Budget(steps=40, queries=20),
    )  # fmt: skip
    clear = np.abs(distance / epsilon - 1) > 0.005
    assert clear.sum() >= 28
    np.testing.assert_array_equal(final.robust[clear], (distance > epsilon)[clear])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, "AutoAttack: norm='l1', it must be one of linf, l2"),
        ({"epsilon": -1.0}, "AutoAttack: epsilon=-1.0, it must be 0 or more"),
        ({"epsilon": float("nan")}, "AutoAttack: epsilon=nan, it must be 0 or more"),
        ({"labels": np.array([0, 5])}, r"labels go from 0 to 5, the model has 5 classes"),
        ({"labels": np.array([-1, 4])}, r"labels go from -1 to 4.*they must be in \[0, 5\)"),
        ({"params": mlp_params(classes=3)}, "the model has 3 classes.*needs 4 or more"),
    ],
)
def test_mistakes_are_one_line(change, message):
    arguments = {
        "classify": classify, "params": mlp_params(), "images": images(2),
        "labels": np.array([0, 1]), "indices": np.arange(2), "norm": "l2", "epsilon": 0.1,
    }  # fmt: skip
    with pytest.raises(UserError, match=message) as error:
        next(autoattack(**(arguments | change)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "size", "sizes"),
    [
        (0, 100, []),
        (1, 100, [25]),
        (50, 100, [50]),
        (51, 100, [75]),
        (100, 100, [100]),
        (131, 100, [75, 75]),
        (201, 100, [75, 75, 75]),
        (5, 3, [3, 3]),
        (7, 1, [1] * 7),
    ],
)
def test_batches_are_few_and_little_is_filled_up(rows, size, sizes):
    batches = list(module._batches(np.arange(10, 10 + rows), size))
    assert [len(batch) for batch in batches] == sizes
    assert list(dict.fromkeys(np.concatenate([[], *batches]))) == list(range(10, 10 + rows))
