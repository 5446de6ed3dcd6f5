"""What a stage makes of its recipe: rates, layers, averages, keys, and what it hands on."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from conftest import OPTIONS, make_batch, make_task

from adv_ssl import pipeline, recipes, stage, train
from adv_ssl.config import parse
from adv_ssl.data import sources
from adv_ssl.task import Task

KEY = jax.random.key(0)


def test_a_stage_is_trained_by_its_recipe():
    """D3, D7, B22: the peak for the batch, the decay by layer, BYOL's average towards 1."""
    config = parse(recipes.recipe("byol", "nominal", "imagenet").to_dict())
    ones = {
        "encoder": {"block_0": {"mlp": {"fc1": {"bias": jnp.ones(2)}}}, "cls_token": jnp.ones(2)},
        "head": {"bias": jnp.ones(2)},
    }
    task = Task(lambda key: ones, None, None)
    tuned = stage.make_recipe(config.finetune, task, 100)
    updates, _ = tuned.tx.update(ones, tuned.tx.init(ones), ones)  # Adam's first step: 1 each
    block, token, head = (leaf[0] for leaf in jax.tree.leaves(updates))
    np.testing.assert_allclose([block, token, head], [0.65, 0.65**2, 1], rtol=1e-4)
    assert tuned.ema_decay is None
    made = stage.make_recipe(config.pretrain, task, 300)
    rates = [tuned.learning_rate(5), made.learning_rate(10)]  # at the end of the warm-up
    np.testing.assert_allclose(rates, [1e-3, 4.8], rtol=1e-5)
    decays = [made.ema_decay(k) for k in (0, 150, 300)]
    np.testing.assert_allclose(decays, [0.99, 0.995, 1], rtol=1e-5)


@pytest.mark.parametrize("own_seed", [True, False])
def test_the_average_starts_from_other_weights_or_from_a_copy(own_seed):
    """B22: BYOL's target network is another random one; C EMA: the others' a copy."""
    made = parse(tiny.config().to_dict()).pretrain
    made = dataclasses.replace(made, ema=dataclasses.replace(made.ema, own_seed=own_seed))
    init = jax.random.normal  # of a task whose parameter is a draw
    recipe = train.Recipe(Task(lambda key: {"w": init(key, (9,))}, None, None),
                          optax.identity(), None, None)  # fmt: skip
    state = stage.random_state(made, recipe, KEY)
    assert np.any(state.params["w"] != state.ema["w"]) == own_seed
    assert parse(tiny.config().to_dict()).pretrain.ema.own_seed


@pytest.mark.parametrize("used", [True, False])
def test_what_is_scored_is_the_average_only_where_it_is_used(used):
    """C EMA, B22: supervised and RotNet pre-training use it, BYOL does not."""
    made = parse(tiny.config(method="supervised").to_dict()).pretrain
    made = dataclasses.replace(made, ema=dataclasses.replace(made.ema, used=used))
    state = train.State(0, {"w": 1.0}, {"w": 2.0}, (), 0)
    assert stage.result(made, state) == {"w": 2.0 if used else 1.0}
    assert stage.result(dataclasses.replace(made, ema=None), state) == {"w": 1.0}


def test_a_run_scores_what_its_stages_hand_on(tmp_path, monkeypatch):
    """C EMA, D14: of supervised pre-training the average, and in the end what was fine-tuned."""
    scored = {}
    monkeypatch.setattr(
        pipeline,
        "_evaluate",
        lambda config, params, facts, *_: scored.update({facts["stage"]: params}),
    )
    pipeline.run(tiny.config("nominal", "supervised", finetune__steps=2), tmp_path)
    assert scored.keys() == {"pretrain", "finetune"}
    for name, params in scored.items():
        chex.assert_trees_all_equal(params, tiny.params(tmp_path / name))


def test_runs_and_stages_differ_in_their_data_and_weights(tmp_path):
    """Seeds are independent: intervals over them would say nothing else."""
    source, labels = sources.load("digits", "train", ""), {}
    for seed in (0, 1):
        config = parse(tiny.config("nominal", "rotnet", seed=seed).to_dict())
        for name in ("pretrain", "finetune"):
            batch = next(stage.batches(name, config, config.finetune, source, 0, 1))
            labels[name, seed] = tuple(batch["label"])
        none = tiny.config("nominal", "rotnet", seed=seed, pretrain__steps=0, finetune__steps=0)
        none.evaluate.attacks = ()
        pipeline.run(none, tmp_path / str(seed))
    assert len(set(labels.values())) == len(labels)
    kernels = [
        tiny.params(tmp_path / seed / "pretrain")["encoder"]["patch_embed"]["kernel"]
        for seed in ("0", "1")
    ]
    assert np.all(kernels[0] != kernels[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_drop_path_is_on_with_a_key_and_off_without(name):
    """B13, D12, A16."""
    task, batch = make_task(name, drop_path=0.9), make_batch(name)

    @jax.jit
    def losses():
        params, ema = (task.init(key) for key in jax.random.split(KEY))
        params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(KEY, p.shape), params)
        x, context, _ = task.prepare(params, ema, batch, KEY)
        keys = (*jax.random.split(KEY), None, None)
        return [task.loss(params, x, context, key)[0] for key in keys]

    one, other, off, again = losses()
    assert np.any(one != off)
    assert np.any(one != other)
    np.testing.assert_array_equal(off, again)
