"""The twelve configurations at the size they have, for a few steps on real images."""

import importlib

import numpy as np
import pytest
import tiny

from adv_ssl import pipeline, preemption
from adv_ssl.recipes import METHODS, THREATS

IMAGENET = {
    "dtype": "float32",  # on a CPU bfloat16 gains nothing
    "pretrain.steps": 1,
    "pretrain.batch_size": 4,
    "finetune.steps": 1,
    "finetune.batch_size": 4,
    "finetune.task.mixing.group": 4,
    "evaluate.split": "validation[:8]",
    "evaluate.batch_size": 8,
    "evaluate.attacks": (),
}
SMALL = {
    "pretrain.steps": 4,
    "pretrain.batch_size": 32,
    "finetune.steps": 3,
    "finetune.batch_size": 32,
    "evaluate.split": "test[:64]",
    "evaluate.batch_size": 64,
    "evaluate.attacks": (("l2", 0.25, 2),),
    "evaluate.attacked": 32,
    "log_every": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", ["digits", "cifar10"])
def test_a_run_is_stopped_resumed_and_scored(
    scale, method, threat, real_data, tmp_path, monkeypatch
):
    steps = tiny.stops(monkeypatch, 2)
    made = importlib.import_module(f"configs.{method}_{threat}").get_config(scale)
    config = tiny.change(made, SMALL | {"data.dir": str(real_data)})
    with pytest.raises(preemption.Preempted):
        pipeline.run(config, tmp_path)
    preemption._asked.clear()
    pipeline.run(config, tmp_path)
    assert len(steps) == 4 + 3  # none twice
    for stage, count in (("pretrain", 4), ("finetune", 3)):
        records = tiny.records(tmp_path / stage / "metrics.jsonl")
        assert [record["step"] for record in records] == [*range(1, count + 1)]
        assert all(np.isfinite(record["loss"]) and not record["skipped"] for record in records)
    scored = {(r["stage"], r["attack"] is not None, r["n"]) for r in tiny.results(tmp_path)}
    assert {("finetune", False, 64), ("finetune", True, 32)} <= scored


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("method", METHODS)
def test_a_real_step_of_both_stages(method, threat, real_data, tmp_path):
    """At the paper's own step 0 the learning rate is 0: so all of the warm-up is left out."""
    config = importlib.import_module(f"configs.{method}_{threat}").get_config()
    changes = IMAGENET | {"data.dir": str(real_data)}
    changes |= {f"{stage}.schedule.warmup": 0.0 for stage in ("pretrain", "finetune")}
    if method == "supervised":
        changes["pretrain.task.mixing.group"] = 4
    pipeline.run(tiny.change(config, changes), tmp_path)
    for stage in ("pretrain", "finetune"):
        (record,) = tiny.records(tmp_path / stage / "metrics.jsonl")
        assert np.isfinite(record["loss"])
        assert record["grad_norm"] > 0
        assert record["skipped"] == 0
        attacked = stage == "pretrain" and threat != "nominal"
        assert (record.get("attack/radius", 0) > 0.9) == attacked
    assert {record["n"] for record in tiny.results(tmp_path)} == {8}
