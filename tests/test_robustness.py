"""What holds for every attack of adv_ssl.robustness, and the losses that they raise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robust import (
    CLASSES,
    SHAPE,
    classify,
    distances,
    images,
    keys,
    mlp_params,
    predicted,
)  # fmt: skip

from adv_ssl.attacks import BALLS
from adv_ssl.errors import UserError
from adv_ssl.robustness.apgd import apgd
from adv_ssl.robustness.fab import fab
from adv_ssl.robustness.losses import (
    check_classes,
    cross_entropy,
    margin,
    targeted_dlr,
    wrong_class,
)  # fmt: skip
from adv_ssl.robustness.margin_pgd import margin_pgd, per_image
from adv_ssl.robustness.square import square

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
RADIUS = {"linf": 0.03, "l2": 0.15}
COUNT, STEPS = 32, 30  # the same in most tests: one program
ALL = keys(np.arange(COUNT))
EVERY = [(attack, norm) for attack in ATTACKS for norm in BALLS]
IN_BALL = [(attack, norm) for attack, norm in EVERY if attack != "fab-t"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(attack, norm, steps, params, x, labels, epsilon, keys):
    """x_adv of the attack with this effort; targeted: at the best wrong class."""
    logits = functools.partial(classify, params)
    targets = wrong_class(logits(x), labels, 0)
    if attack == "fab-t":
        return fab(norm, steps)(logits, x, labels, epsilon, targets)[0]
    if attack == "square":
        return square(norm, steps)(logits, x, labels, epsilon, keys)
    loss = cross_entropy if attack == "apgd-ce" else targeted_dlr(targets)
    return apgd(norm, steps, loss)(logits, x, labels, epsilon, keys)


def right_images(count: int = COUNT) -> tuple[dict, np.ndarray, np.ndarray]:
    """Parameters, images, and labels that are what the model says."""
    params, x = mlp_params(), images(count)
    return params, x, predicted(params, x)


@pytest.mark.parametrize(("attack", "norm"), IN_BALL)
@pytest.mark.parametrize("share", [1.0, 0.02])
def test_result_is_in_the_ball_and_in_the_range_of_pixels(attack, norm, share):
    params, x, labels = right_images()
    x[:8] = np.round(x[:8])  # pixels at the edges of their range
    epsilon = np.float32(share * RADIUS[norm])
    x_adv = run(attack, norm, STEPS, params, x, labels, epsilon, ALL)
    assert distances(norm, x_adv, x).max() <= np.float64(epsilon) * (1 + 1e-6)
    assert np.min(x_adv) >= 0
    assert np.max(x_adv) <= 1
    assert np.median(distances(norm, x_adv, x)) > 0.4 * epsilon


@pytest.mark.parametrize(("attack", "norm"), EVERY)
def test_attack_breaks_images_that_noise_does_not(attack, norm):
    params, x, labels = right_images()
    epsilon = RADIUS[norm]
    noise = images(COUNT, seed=9) - 0.5
    lengths = distances(norm, noise, 0 * noise)[:, None, None, None]
    noisy = predicted(params, np.clip(x + epsilon * noise / lengths, 0, 1)) != labels
    x_adv = run(attack, norm, STEPS, params, x, labels, epsilon, ALL)
    inside = distances(norm, x_adv, x) <= epsilon * (1 + 1e-6)
    broken = inside & (predicted(params, x_adv) != labels)
    assert noisy.mean() + 0.1 < broken.mean() < 0.95


@pytest.mark.parametrize(("attack", "norm"), EVERY)
def test_an_image_that_is_wrong_already_is_given_back(attack, norm):
    params, x, labels = right_images()
    labels[::2] = (labels[::2] + 1) % 5
    x_adv = run(attack, norm, STEPS, params, x, labels, RADIUS[norm], ALL)
    np.testing.assert_array_equal(x_adv[::2], x[::2])
    assert np.all(distances(norm, x_adv[1::2], x[1::2]) > 0)


@pytest.mark.parametrize(("attack", "norm"), IN_BALL)
def test_an_image_from_which_all_ways_lead_down_is_given_back(attack, norm):
    """Never worse than the clean image: its loss is the highest there is."""
    x, labels = images(4), np.zeros(4, np.int32)

    def logits(points):
        down = 1 + jnp.square(points - x).sum((1, 2, 3))
        return jnp.stack([down, 0 * down, -down, -down], axis=1)

    if attack == "square":
        search = square(norm, 10)
    else:
        loss = cross_entropy if attack == "apgd-ce" else targeted_dlr(np.ones(4, np.int32))
        search = apgd(norm, 10, loss)
    x_adv = jax.jit(lambda x: search(logits, x, labels, RADIUS[norm], keys(np.arange(4))))(x)
    np.testing.assert_array_equal(x_adv, x)


@pytest.mark.parametrize(("attack", "norm"), EVERY)
def test_image_and_key_alone_decide(attack, norm):
    """Neighbours, broken early or never, and the order of a batch change nothing."""
    params, x, labels = right_images()
    attacked = functools.partial(run, attack, norm, STEPS, params)
    together = np.asarray(attacked(x, labels, RADIUS[norm], ALL))
    np.testing.assert_array_equal(attacked(x, labels, RADIUS[norm], ALL), together)
    order = np.random.default_rng(0).permutation(COUNT)
    mixed = attacked(x[order], labels[order], RADIUS[norm], ALL[order])
    np.testing.assert_array_equal(mixed, together[order])
    inside = distances(norm, together, x) <= RADIUS[norm] * (1 + 1e-6)
    fell = inside & (predicted(params, together) != labels)
    assert 0 < fell.sum() < COUNT
    wrong = (labels + 1) % CLASSES  # neighbours that fall at once, so that the search ends early
    for chosen in (fell, ~fell):
        neighbours = np.where(chosen, labels, wrong).astype(np.int32)
        among = attacked(x, neighbours, RADIUS[norm], ALL)
        np.testing.assert_array_equal(among[chosen], together[chosen])
    moved = attacked(x, labels, RADIUS[norm], keys(np.arange(COUNT), seed=1))
    assert np.any(moved != together) == (attack != "fab-t")  # chance plays no part in FAB


@pytest.mark.parametrize("attack", ATTACKS[1:])
def test_an_image_alone_has_the_result_it_has_in_a_batch(attack):
    params, x, labels = right_images()
    few = functools.partial(run, attack, "l2", 3, params)  # rounding grows with the steps
    together = few(x, labels, RADIUS["l2"], ALL)
    alone = few(x[2:3], labels[2:3], RADIUS["l2"], ALL[2:3])
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_ends_when_all_images_are_broken(attack):
    """With a boundary that is crossed at once the model is called a few times, not 500."""
    calls, norm = [], "l2"

    def logits(x):
        jax.debug.callback(lambda: calls.append(1))
        ahead = x.mean((1, 2, 3))[:, None] - 0.5
        return jnp.concatenate([ahead, -ahead, -9 + 0 * ahead, -9 + 0 * ahead], 1)

    x = np.full((3, *SHAPE), 0.502, np.float32)
    labels, far = np.zeros(3, np.int32), keys(np.arange(3))
    targets, epsilon = np.ones(3, np.int32), 2 * RADIUS[norm]
    if attack == "fab-t":
        x_adv, _ = jax.jit(lambda: fab(norm, 500)(logits, x, labels, epsilon, targets))()
    elif attack == "square":
        x_adv = jax.jit(lambda: square(norm, 500)(logits, x, labels, epsilon, far))()
    else:
        loss = cross_entropy if attack == "apgd-ce" else targeted_dlr(targets)
        x_adv = jax.jit(lambda: apgd(norm, 500, loss)(logits, x, labels, epsilon, far))()
    assert np.all(np.asarray(x_adv).mean((1, 2, 3)) < 0.5)
    jax.effects_barrier()
    assert 2 <= len(calls) < 50


@pytest.mark.parametrize("attack", ATTACKS)
def test_program_does_not_grow_with_the_steps(attack):
    params, x, labels = right_images()

    def length(steps):
        text = run.lower(attack, "l2", steps, params, x, labels, 0.1, ALL).as_text()
        return len(text.splitlines())

    assert length(40) == length(80)


@pytest.mark.parametrize("norm", BALLS)
def test_more_steps_of_apgd_break_more_images(norm):
    params, x = mlp_params(steepness=40.0), images(COUNT)  # far from linear
    labels, epsilon = predicted(params, x), 0.5 * RADIUS[norm]
    robust = []
    for steps in (1, STEPS):
        x_adv = run("apgd-ce", norm, steps, params, x, labels, epsilon, ALL)
        robust.append(np.mean(predicted(params, x_adv) == labels))
    assert robust[0] > robust[1] + 0.05


# ---- losses -----------------------------------------------------------------------------------

LOGITS = jnp.array([[3.0, 1.0, 0.0, -1.0, 2.0]])
LABEL = jnp.array([0])


def test_targeted_dlr_by_hand():
    # (1 - 3) / (3 - (1 + 0) / 2), and at the least likely class (-1 - 3) / 2.5
    np.testing.assert_allclose(targeted_dlr(jnp.array([1]))(LOGITS, LABEL), [-0.8], rtol=1e-6)
    np.testing.assert_allclose(targeted_dlr(jnp.array([3]))(LOGITS, LABEL), [-1.6], rtol=1e-6)


def test_targeted_dlr_knows_no_scale():
    loss = targeted_dlr(jnp.array([4]))
    np.testing.assert_allclose(loss(1e-3 * LOGITS + 7, LABEL), loss(LOGITS, LABEL), rtol=1e-3)
    slope = jax.grad(lambda z: loss(z, LABEL).sum())
    np.testing.assert_allclose(
        slope(1e4 * LOGITS), slope(LOGITS) / 1e4, rtol=1e-5
    )  # it shrinks by no more than the scale
    np.testing.assert_allclose(slope(LOGITS).sum(), 0, atol=1e-6)


def test_cross_entropy_and_margin_by_hand():
    expected = np.log(np.exp(np.asarray(LOGITS)).sum()) - 1
    np.testing.assert_allclose(cross_entropy(LOGITS, jnp.array([1])), [expected], rtol=1e-6)
    np.testing.assert_allclose(margin(LOGITS, LABEL), [-1.0])
    np.testing.assert_allclose(margin(LOGITS, jnp.array([4])), [1.0])


def test_wrong_classes_are_ranked_without_the_label():
    ranks = [int(wrong_class(LOGITS, jnp.array([4]), rank)[0]) for rank in range(4)]
    assert ranks == [0, 1, 2, 3]
    assert [int(wrong_class(LOGITS, LABEL, rank)[0]) for rank in range(4)] == [4, 1, 2, 3]


def test_fewer_than_four_classes_are_an_error():
    with pytest.raises(UserError, match=r"3 classes.* needs 4 or more: take --attack=pgd"):
        check_classes(3)
    check_classes(4)


def test_the_attack_climbs_the_margin_also_where_the_model_is_sure():
    """A25. The cross-entropy of a sure model has no gradient in float32."""
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 500.0, -1.0], [1.0, 1.0, 4.0]])
    labels = jnp.array([0, 1, 1])
    np.testing.assert_allclose(margin(logits, labels), [-1.0, -500.0, 3.0])
    gradient = jax.grad(lambda z: margin(z, labels).sum())(logits)
    np.testing.assert_array_equal(gradient, [[-1, 0, 1], [1, -1, 0], [0, -1, 1]])


def test_the_attack_of_scores_fells_what_it_can_reach_of_a_sure_model():
    """A linear model of two classes, whose logits are 10,000 times the distance to its boundary."""
    x = jnp.linspace(0.3, 0.7, 11).reshape(-1, 1, 1, 1)  # the boundary is at 0.5
    labels = (x[:, 0, 0, 0] > 0.5).astype(int)

    def logits(x):
        side = 1e4 * (x.reshape(-1) - 0.5)
        return jnp.stack([-side, side], axis=1)

    keys = per_image(jax.random.key(0), jnp.arange(len(x)))
    found = margin_pgd(logits, x, labels, keys, "linf", 0.1, 10, 0.25)
    fallen = np.asarray(logits(found).argmax(1)) != labels
    near = np.abs(np.asarray(x).reshape(-1) - 0.5) < 0.1 - 1e-6
    np.testing.assert_array_equal(fallen, near)
