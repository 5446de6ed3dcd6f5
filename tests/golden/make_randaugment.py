"""Writes randaugment.npz: a small picture, and what timm's operations of RandAugment make of it.

timm draws the sign of an operation; here it is forced by replacing its generator of chance.
"""

import pathlib

import numpy as np
from PIL import Image
from timm.data import auto_augment

SIZE = (18, 22)
MAGNITUDES = (0.0, 4.6, 9.0)  # at 10 Pillow refuses timm's posterize
NAMES = {  # ours: timm's, of the increasing set
    "AutoContrast": "AutoContrast",
    "Equalize": "Equalize",
    "Invert": "Invert",
    "Rotate": "Rotate",
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "SolarizeAdd": "SolarizeAdd",
    "Color": "ColorIncreasing",
    "Contrast": "ContrastIncreasing",
    "Brightness": "BrightnessIncreasing",
    "Sharpness": "SharpnessIncreasing",
    "ShearX": "ShearX",
    "ShearY": "ShearY",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
}


class ForcedChance:
    """Of ``random``: the sign is negated where a draw is above a half."""

    def __init__(self, sign: int):
        self.sign = sign

    def random(self) -> float:
        return 0.0 if self.sign > 0 else 1.0


def picture() -> np.ndarray:
    """Waves of colour, with dark and bright ends: uint8 [18, 22, 3]."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    phase = np.array([0.0, 1.3, 2.9])
    waves = np.sin(0.5 * rows[..., None] + phase) + np.cos(0.35 * columns[..., None] * (1 + phase))
    return np.round(20 + 215 * (waves + 2) / 4).clip(0, 255).astype(np.uint8)


def make() -> dict[str, np.ndarray]:
    golden = {"image": picture(), "magnitudes": np.array(MAGNITUDES)}
    options = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
    for ours, theirs in NAMES.items():
        to_level, change = auto_augment.LEVEL_TO_ARG[theirs], auto_augment.NAME_TO_OP[theirs]
        made = []
        for sign in (1, -1):
            auto_augment.random = ForcedChance(sign)
            for magnitude in MAGNITUDES:
                image = Image.fromarray(picture())
                arguments = to_level(magnitude, {"translate_pct": 0.45}) if to_level else ()
                made.append(np.asarray(change(image, *arguments, **options)))
        golden[ours] = np.stack(made).reshape(2, len(MAGNITUDES), *picture().shape)
    return golden


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("randaugment.npz"), **make())
