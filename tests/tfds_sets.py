"""Data sets in TFDS's own layout, written by TFDS itself: PNG bytes, so without TensorFlow."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from adv_ssl.data.corruptions import SEVERITIES, TYPES
from adv_ssl.evaluation.rules import conflict_classes, wnids

tfds.disable_progress_bar()


def write(
    root: pathlib.Path,
    name: str,  # NAME[/CONFIG]:VERSION
    split: str,
    features: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
) -> None:
    """One split of one set. Images are uint8 [H, W, 3]."""
    path, version = name.split(":")
    own, _, config = path.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = own
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            made = tfds.features.FeaturesDict({"image": image, **features})
            return tfds.core.DatasetInfo(builder=self, features=made, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i, example in enumerate(examples):
                file = io.BytesIO()
                Image.fromarray(example["image"]).save(file, "PNG")
                file.seek(0)
                yield i, {**example, "image": file}

    builder = Builder(data_dir=root, config=config or None, file_format="array_record")
    builder.download_and_prepare()


def images(count: int, size: int = 9, seed: int = 0) -> list[np.ndarray]:
    """Noise."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, size, size, 3), np.uint8))


LABELS = {"v2": [0, 10, 100, 999], "a": [6, 11], "r": [1, 2, 4], "sketch": [7, 7]}
REAL = [[3], [], [5, 6], [999]]
SHAPES = [0, 1, 2, 3, 4]
TEXTURES = [0, 2, 1, 4, 3]  # the first one is no conflict
NAMES = {
    "v2": "imagenet_v2/matched-frequency:3.0.0",
    "a": "imagenet_a:0.1.0",
    "r": "imagenet_r:0.2.0",
    "sketch": "imagenet_sketch:1.0.0",
}


def write_imagenet_variants(root: pathlib.Path) -> None:
    """All eight, a few images each; IN-C with its 75 sets."""
    label = tfds.features.ClassLabel(names=wnids())

    def labelled(labels: Sequence[int], size: int = 9) -> list[dict[str, Any]]:
        pairs = zip(images(len(labels), size), labels, strict=True)
        return [{"image": image, "label": value} for image, value in pairs]

    write(root, "imagenet2012:5.1.0", "validation", {"label": label}, labelled([0, 1, 2]))
    for variant, labels in LABELS.items():
        write(root, NAMES[variant], "test", {"label": label}, labelled(labels))
    write(
        root,
        "imagenet2012_real:1.0.0",
        "validation",
        {"original_label": label, "real_label": tfds.features.Sequence(label)},
        [
            {"image": image, "original_label": 3, "real_label": right}
            for image, right in zip(images(4), REAL, strict=True)
        ],
    )
    sixteen = tfds.features.ClassLabel(names=list(conflict_classes()))
    features = {
        f"{cue}_{what}": feature
        for cue in ("shape", "texture")
        for what, feature in (
            ("label", sixteen),
            ("imagenet_labels", tfds.features.Sequence(label)),
        )
    }
    write(
        root,
        "geirhos_conflict_stimuli:1.0.0",
        "test",
        features,
        [
            {
                "image": image,
                "shape_label": shape,
                "texture_label": texture,
                "shape_imagenet_labels": [],
                "texture_imagenet_labels": [],
            }
            for image, shape, texture in zip(images(5, 8), SHAPES, TEXTURES, strict=True)
        ],
    )
    for kind in TYPES:
        for severity in SEVERITIES:
            write(
                root,
                f"imagenet2012_corrupted/{kind}_{severity}:3.1.0",
                "validation",
                {"label": label},
                labelled([0, 1], 8),
            )
