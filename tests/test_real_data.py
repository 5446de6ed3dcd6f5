"""The whole path on real photographs, through the TFDS reader, where the data is at hand."""

import pytest
import tiny

from adv_ssl import pipeline


@pytest.mark.parametrize(
    ("method", "name", "split", "size"),
    [
        ("supervised", "cifar10:3.0.2", "test", 16),
        ("rotnet", "imagenet2012:5.*", "validation", 32),
    ],
)
def test_a_run_on_real_photographs(method, name, split, size, real_data, tmp_path):
    changes = {
        "data__name": name,
        "data__dir": str(real_data),
        "model__image_size": size,
        "evaluate__resize": size,
        "evaluate__split": f"{split}[:60]",
        "evaluate__attacks": (),
        "pretrain__steps": 2,
        "finetune__steps": 2,
    }
    page = pipeline.run(tiny.config("l2", method, **changes), tmp_path)
    assert page.exists()
    *_, record = tiny.results(tmp_path)  # supervised pre-training has a score of its own before
    assert (record["n"], record["dataset"]) == (60, f"{name} {split}[:60]")
