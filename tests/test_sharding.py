"""Many devices: what they compute together is what one computes alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

STEPS = """
import json, sys
sys.path[:0] = ["tests"]
import jax, tiny
from adv_ssl import sharding, stage, train
from adv_ssl.config import parse
from adv_ssl.data import sources
losses = []
for method in sys.argv[1:]:
    config = parse(tiny.config("l2", method, evaluate__split="test[:48]").to_dict())
    options = config.pretrain
    source = sources.load("digits", "train", "")
    recipe = stage.make_recipe(options, stage.make_task(config, options, 10), 4)
    key = jax.random.key(0)
    state = sharding.replicate(stage.random_state(options, recipe, key))
    for batch in stage.batches("pretrain", config, options, source, 0, 4):
        state, metrics = train.train_step(recipe, state, sharding.split(batch), key)
        losses.append([float(metrics[k]) for k in ("loss", "grad_norm", "attack/gain")])
print(json.dumps(losses))
"""


def losses(devices: int, *methods: str) -> np.ndarray:
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *methods],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


SLOW = [
    pytest.param(method, marks=pytest.mark.slow)
    for method in ("mae", "rotnet", "simclr", "supervised")
]


@pytest.mark.parametrize("method", ["byol", *SLOW])
def test_eight_devices_train_as_one(method):
    """BYOL's BatchNorm is over the whole batch (B20), SimCLR's loss too; mixing is by groups."""
    one, eight = (losses(devices, method) for devices in (1, 8))
    np.testing.assert_allclose(eight, one, rtol=2e-4, atol=1e-5)
    assert len(one) == 4
    assert np.isfinite(one).all()
