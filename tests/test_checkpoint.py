"""Checkpoints: round trips, and what passes from one stage to the next."""

import dataclasses
import errno
import gc
import random
import shutil
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from adv_ssl import checkpoint, sharding
from adv_ssl.checkpoint import Checkpoints, State, hand_over
from adv_ssl.errors import UserError
from adv_ssl.models.vit import sincos_table


def state(step, value=1.0):
    params = {"encoder": {"w": jnp.full((3, 2), value)}, "head": {"kernel": jnp.arange(4.0)}}
    opt_state = optax.adam(0.1).init(params)
    return State(jnp.int32(step), params, {"copy": jnp.ones(2)}, opt_state, jnp.int32(0))


def test_a_state_comes_back_as_it_was(tmp_path):
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(state(3), wait=True)
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        assert checkpoints.latest() == 3
        back = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    chex.assert_trees_all_equal(back, state(3))
    assert jax.tree.structure(back) == jax.tree.structure(state(3))


def test_the_newest_two_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(state(step, step), wait=True)
        assert float(checkpoints.params()["encoder"]["w"][0, 0]) == 4.0
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.is_dir()) == ["3", "4"]


@pytest.mark.parametrize("name", ["x[1]", "a\\b"])
def test_a_folder_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """It would write there what it cannot read."""
    with pytest.raises(UserError, match="no checkpoints below a name with"):
        Checkpoints(tmp_path / name / "checkpoints", TINY)


def test_saving_a_step_twice_and_waiting_is_harmless(tmp_path):
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        checkpoints.save(state(1))
        checkpoints.save(state(1), wait=True)
        assert (tmp_path / "c" / "1").is_dir()


def test_a_half_written_checkpoint_is_not_picked_up(tmp_path):
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        checkpoints.save(state(1), wait=True)
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        assert checkpoints.latest() == 1


def test_an_empty_folder_is_refused(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="no whole checkpoint"),
    ):
        checkpoints.params()


def test_every_parameter_is_accounted_for():
    old = {"encoder": {"a": np.ones(2), "norm": np.ones(2)}, "head": {"kernel": np.ones((2, 3))}}
    new = {"encoder": {"a": jnp.zeros(2), "b": jnp.zeros(2)}, "head": {"kernel": jnp.zeros((2, 3))}}
    merged, rows = hand_over(old, new)
    assert {row.name: row.status for row in rows if row.status != "dropped"} == {
        "encoder/a": "carried",
        "encoder/b": "fresh",
        "head/kernel": "fresh",  # always drawn anew, though the shapes agree (B11)
    }
    dropped = {row.name for row in rows if row.status == "dropped"}
    assert dropped == {"encoder/norm", "head/kernel"}
    np.testing.assert_array_equal(merged["encoder"]["a"], np.ones(2))
    np.testing.assert_array_equal(merged["encoder"]["b"], np.zeros(2))
    np.testing.assert_array_equal(merged["head"]["kernel"], np.zeros((2, 3)))


def test_another_shape_is_refused_with_both():
    with pytest.raises(UserError, match=r"encoder/a is \(3,\) there and \(2,\) here"):
        hand_over({"encoder": {"a": np.ones(3)}}, {"encoder": {"a": jnp.zeros(2)}})


def test_weights_that_are_not_finite_are_no_ones(tmp_path):
    with Checkpoints(tmp_path, TINY) as checkpoints:
        spoilt = state(1)
        spoilt.params["encoder"]["w"] = jnp.array([1.0, jnp.nan])
        checkpoints.save(spoilt, wait=True)
        with pytest.raises(UserError, match=f"{tmp_path}/1 holds weights that are not finite"):
            checkpoints.params()


def test_trained_positions_are_not_dropped_in_silence():
    table = sincos_table(2, 8)[None]
    new = {"encoder": {"a": jnp.zeros(2)}}
    _, rows = hand_over({"encoder": {"a": np.ones(2), "pos_embed": table}}, new)
    assert [row.name for row in rows if row.status == "dropped"] == ["encoder/pos_embed"]
    with pytest.raises(UserError, match="the checkpoint has trained positions"):
        hand_over({"encoder": {"a": np.ones(2), "pos_embed": table + 0.1}}, new)


def test_another_architecture_is_refused_with_the_keys(tmp_path):
    with Checkpoints(tmp_path, TINY) as checkpoints:
        checkpoints.save(state(1), wait=True)
        checkpoints.check(TINY)
        with pytest.raises(UserError, match="depth is 1 there and 7 here"):
            checkpoints.check(dataclasses.replace(TINY, depth=7))


def test_what_others_read_is_the_average_if_that_is_what_is_used(tmp_path):
    with Checkpoints(tmp_path, TINY, averaged=True) as checkpoints:
        checkpoints.save(state(3), wait=True)
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.params(), state(3).ema)
    with Checkpoints(tmp_path, TINY, averaged=True) as checkpoints:
        back = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    chex.assert_trees_all_equal(back, state(3))


@pytest.mark.usefixtures("forgiving")
def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path, TINY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), wait=True)
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file() and "d" in path.parent.name:
            path.write_bytes(b"")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"/2 is damaged \("),
    ):
        checkpoints.params()


def spoiled(content: bytes, how: str, rng: random.Random) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "garbage":
        return rng.randbytes(len(content))
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


@pytest.fixture
def forgiving(monkeypatch):
    """The library leaves some of its own coroutines unfinished when a read fails."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)
    yield
    gc.collect()


@pytest.mark.usefixtures("forgiving")
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, monkeypatch):
    """Twenty ways: never numbers that were not saved, and only what is damaged is moved."""
    monkeypatch.setattr(checkpoint, "_WAIT", 0.0)
    whole = tmp_path / "whole"
    with Checkpoints(whole, TINY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), wait=True)
    like, rng = jax.eval_shape(lambda: state(0)), random.Random(0)
    files = sorted(p.relative_to(whole) for p in (whole / "2").rglob("*") if p.is_file())
    needed = [p for p in files if p.parts[1] != "model" and "ocdbt.process_0" not in p.parts]
    steps = []
    for i in range(20):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(whole, folder)
        path = folder / rng.choice(needed)
        how = ("truncated", "garbage", "flipped")[i % 3]
        path.write_bytes(spoiled(path.read_bytes(), how, rng))
        with Checkpoints(folder, TINY) as checkpoints:
            back = checkpoints.restore(like)
            assert checkpoints.latest() == int(back.step)
        chex.assert_trees_all_equal(back, state(int(back.step)))
        assert (folder.parent / "damaged" / "2").exists() == (int(back.step) == 1)
        steps.append(int(back.step))
    assert steps.count(1) >= 10


def test_a_read_that_fails_once_costs_no_checkpoint(tmp_path, monkeypatch):
    """As that of a network disk: the newest one is read again, and stays."""
    monkeypatch.setattr(checkpoint, "_WAIT", 0.0)
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), wait=True)
        restore, failed = checkpoints._manager.restore, []

        def once(*args, **kwargs):
            if not failed:
                failed.append(None)
                raise OSError(errno.EIO, "Input/output error")
            return restore(*args, **kwargs)

        monkeypatch.setattr(checkpoints._manager, "restore", once)
        assert int(checkpoints.restore(jax.eval_shape(lambda: state(0))).step) == 2
    assert not (tmp_path / "damaged").exists()


def test_a_check_sum_sees_every_bit_and_its_place_but_no_device():
    numbers = np.arange(48, dtype=np.float32).reshape(8, 6)
    swapped, flipped = numbers[:, ::-1], numbers.copy()
    flipped.view(np.uint32)[3, 4] ^= 1
    split = sharding.place({"a": numbers}, {"a": sharding.batch_sharding(sharding.mesh())})
    of, other = checkpoint.sums({"a": numbers}), [checkpoint.sums(a) for a in (swapped, flipped)]
    weights = 2 * np.arange(48, dtype=np.uint32) + 1
    by_hand = (numbers.view(np.uint32).ravel() * weights).sum(dtype=np.uint32)
    assert of == checkpoint.sums(split) == [int(by_hand)]
    assert of not in other


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    """A checkpoint that does not fit here and now stays where it is."""
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), wait=True)

        def full(*_, **__):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

        monkeypatch.setattr(checkpoints._manager, "restore", full)
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            checkpoints.restore(jax.eval_shape(lambda: state(0)))
        assert checkpoints.latest() == 2
    assert not (tmp_path / "damaged").exists()


@pytest.mark.usefixtures("forgiving")
def test_without_an_older_one_a_damaged_checkpoint_stays_where_it_is(tmp_path):
    with Checkpoints(tmp_path / "c", TINY) as checkpoints:
        checkpoints.save(state(1), wait=True)
    (tmp_path / "c" / "1" / "sums" / "metadata").write_text("[]")
    with (
        Checkpoints(tmp_path / "c", TINY) as checkpoints,
        pytest.raises(UserError, match=r"/1 is damaged \(.*\): .* and the stage is trained anew"),
    ):
        checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert (tmp_path / "c" / "1").exists()
