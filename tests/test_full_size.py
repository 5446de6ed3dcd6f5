"""The twelve configurations at full size: ViT-B/16 at 224 on real ImageNet photographs."""

import importlib

import numpy as np
import pytest
import tiny

from adv_ssl import pipeline
from adv_ssl.recipes import METHODS, THREATS

CHANGES = {
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


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("method", METHODS)
def test_a_real_step_of_both_stages(method, threat, real_data, tmp_path):
    """At the paper's own step 0 the learning rate is 0: so all of the warm-up is left out."""
    config = importlib.import_module(f"configs.{method}_{threat}").get_config()
    changes = CHANGES | {"data.dir": str(real_data)}
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
