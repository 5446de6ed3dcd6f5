"""Every method from images to scores, for real though tiny; transfer; and what attacks cost."""

import json

import chex
import numpy as np
import pytest
import tiny

from adv_ssl import pipeline, preemption, recipes
from adv_ssl.checkpoint import Checkpoints

STEPS = {"pretrain__steps": 4, "finetune__steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folders of finished runs by method, each made when first asked for."""
    made = {}

    def run(method: str, threat: str):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("methods") / method
            pipeline.run(tiny.config(threat, method, **STEPS), made[method])
        return made[method]

    return run


RUNS = [
    ("mae", "l2"),
    ("supervised", "l2"),
    # One of these runs in test_real_data.py and test_colab.py too
    *(pytest.param(*run, marks=pytest.mark.slow) for run in (("rotnet", "linf"), ("simclr", "l2"))),
]  # fmt: skip


@pytest.mark.parametrize(("method", "threat"), RUNS)
def test_a_method_from_images_to_scores(finished, method, threat):
    folder = finished(method, threat)
    log = tiny.records(folder / "pretrain" / "metrics.jsonl")
    assert log[-1]["step"] == 4
    assert np.isfinite(log[-1]["loss"])
    assert 0 < log[-1]["attack/radius"] <= 1 + 1e-5
    scored = [(r["stage"], r["attack"] is not None) for r in tiny.results(folder)]
    both = [("pretrain", False), ("pretrain", True)] if method == "supervised" else []
    assert scored == [*both, ("finetune", False), ("finetune", True)]  # D14
    handed = json.loads((folder / "finetune/handoff.json").read_text())
    became = {(row["name"], row["status"]) for row in handed}
    assert ("encoder/block_0/attn/qkv/kernel", "carried") in became
    assert ("head/kernel", "fresh") in became  # always, for supervised too (B11, B12)
    fresh = "fresh" if method == "mae" else "carried"
    assert ("encoder/fc_norm/scale", fresh) in became  # B5
    assert ("encoder/pos_embed", fresh) in became  # the constant of MAE is what a fresh one is
    assert (("encoder/norm/scale", "dropped") in became) == (method == "mae")
    page = (folder / "report.html").read_text()
    assert "is missing: the run" not in page
    assert page.count("cannot be shown") == 0


@pytest.mark.slow  # BYOL, whose state is the largest, is stopped in test_pipeline.py
@pytest.mark.parametrize(("method", "threat"), RUNS)
def test_a_stopped_method_ends_like_an_uninterrupted_one(
    finished, method, threat, tmp_path, monkeypatch
):
    asked = tiny.stops(monkeypatch, 3)
    with pytest.raises(preemption.Preempted):
        pipeline.run(tiny.config(threat, method, **STEPS), tmp_path)
    preemption._asked.clear()
    pipeline.run(tiny.config(threat, method, **STEPS), tmp_path)
    assert len(asked) == 6
    for stage in ("pretrain", "finetune"):
        whole, parts = (tiny.params(run / stage) for run in (finished(method, threat), tmp_path))
        chex.assert_trees_all_equal(whole, parts)


def test_the_average_is_what_is_handed_on(finished):
    """Supervised pre-training: not the last parameters but their moving average."""
    folder = finished("supervised", "l2") / "pretrain" / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        handed = checkpoints.params()
        rest = checkpoints._manager.restore(checkpoints.latest())["rest"]
    assert rest["ema"] is None
    last = rest["params"]
    chex.assert_trees_all_equal_shapes(last, handed)
    assert np.abs(last["head"]["kernel"] - handed["head"]["kernel"]).max() > 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_transfer_of_an_encoder(finished, optimizer, tmp_path):
    config = recipes.transfer(optimizer, "digits,digits")
    changes = {k: v for k, v in tiny.CHANGES.items() if not k.startswith("pretrain")}
    changes |= {"weights": str(finished("mae", "l2") / "pretrain"), "finetune.steps": 2}
    pipeline.run(tiny.change(config, changes, evaluate__attacks=()), tmp_path)
    assert not (tmp_path / "pretrain").exists()
    (record,) = tiny.results(tmp_path)
    assert (record["stage"], record["step"], record["n"]) == ("finetune", 2, 50)
