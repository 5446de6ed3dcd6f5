"""Facts about the data sets of TFDS that are used here, beside those in the table of the suites."""

from collections.abc import Mapping
from typing import NamedTuple

IMAGENET_TERMS = "a free account at https://image-net.org/download-images, for research alone"
_VALIDATION = ("ILSVRC2012_img_val.tar",)


class Facts(NamedTuple):
    """What the suites do not say about a set."""

    classes: int
    disk: int  # bytes of the prepared set, about: TFDS's catalogue; corrupted: 450 images measured
    download: int = 0  # bytes that TFDS fetches by itself, by its own checksum files
    train: Mapping[str, int] = {}  # images in each split that the suites do not score
    by_hand: tuple[str, ...] = ()  # what must lie in downloads/manual before
    terms: str = ""  # where from, or under which licence
    packages: tuple[str, ...] = ()  # that preparing it needs, beside those of all sets
    program: str = ""  # that TFDS calls


FACTS = {
    "imagenet2012": Facts(
        1000, 167_332_000_000, train={"train": 1_281_167},
        by_hand=("ILSVRC2012_img_train.tar", *_VALIDATION), terms=IMAGENET_TERMS,
    ),
    "imagenet2012_real": Facts(1000, 6_711_000_000, 388_478, by_hand=_VALIDATION,
                               terms=IMAGENET_TERMS),
    "imagenet_v2": Facts(1000, 1_246_000_000, 1_264_079_360),
    "imagenet_a": Facts(1000, 690_000_000, 687_552_512),
    "imagenet_r": Facts(1000, 2_190_000_000, 2_191_079_936),
    "imagenet_sketch": Facts(1000, 8_171_000_000, 7_593_573_012),
    "geirhos_conflict_stimuli": Facts(1000, 137_000_000, 161_437_859, terms="CC BY 4.0"),
    "imagenet2012_corrupted": Facts(
        1000, 90_000_000_000, 2_080_003, by_hand=_VALIDATION, terms=IMAGENET_TERMS,
        packages=("scikit-image",), program="imagemagick",
    ),
    "cifar10": Facts(10, 139_000_000, 170_052_171, {"train": 50_000}),
    "cifar100": Facts(100, 138_000_000, 168_513_733, {"train": 50_000}),
    "sun397": Facts(397, 1_990_000_000, 39_095_590_629, {"train": 76_128, "validation": 10_875}),
    "resisc45": Facts(
        45, 427_800_000, train={"train": 31_500}, by_hand=("NWPU-RESISC45",),
        terms="a .rar from https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs, unpacked",
    ),
    "dmlab": Facts(6, 3_361_000_000, 3_017_022_789, {"train": 65_550, "validation": 22_628}),
}  # fmt: skip
