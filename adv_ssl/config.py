"""The border: a nested dict comes in, frozen dataclasses go on.

Every key must be known, every known key must be there and of its type, and a value that makes no
sense ends in one line. So nothing behind this module reads a key by string or with a default.
"""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adv_ssl import attacks, tasks
from adv_ssl.data.transforms import Augment
from adv_ssl.errors import UserError, in_decimals
from adv_ssl.models.vit import Architecture, ViT
from adv_ssl.optim import OPTIMIZERS, Optimizer, Schedule, peak_rate
from adv_ssl.ranges import (
    Below1,
    Count,
    MaybeWhole,
    NotNegative,
    Options,
    Part,
    Positive,
    Share,
    Whole,
)
from adv_ssl.tasks.byol import Byol
from adv_ssl.tasks.mae import Mae
from adv_ssl.tasks.supervised import Supervised

DTYPES = ("float32", "bfloat16")
# Of float32, which is computed in: beyond, a value would become 0 or infinite
LEAST_FLOAT, LARGEST_FLOAT = (float(end) for end in (np.finfo("f").tiny, np.finfo("f").max))
LARGEST_LINF = 16 / 255  # radius that people write as k/255
LARGEST = 2**32 - 1  # whole number
LARGEST_RESIZE = 8  # crops along the short side of an image: beyond, a crop is a speck of it


@contextlib.contextmanager
def _under(path: str) -> Iterator[None]:
    """A mistake in here names the field alone: the user needs its whole path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}.{error}") from None


@dataclasses.dataclass(frozen=True)
class AttackConfig(Options):
    """An attack on pixels in [0, 1]."""

    name: str  # of attacks.ATTACKS
    norm: str  # linf or l2
    epsilon: Positive  # radius; L-inf radii are usually written k/255
    steps: Whole
    step_size: Positive  # share of epsilon, 2 at most; all steps together 0.1 or more
    start: str  # where in the ball it starts

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in attacks.ATTACKS:
            raise UserError(f"name={self.name!r}: choose from {', '.join(attacks.ATTACKS)}.")
        if self.norm not in attacks.BALLS:
            raise UserError(f"norm={self.norm!r}: choose from {', '.join(attacks.BALLS)}.")
        starts = attacks.BALLS[self.norm].starts
        if self.start not in starts:
            raise UserError(
                f"start={self.start!r}: for {self.norm} choose from {', '.join(starts)}."
            )

    def check_step(self) -> None:
        """UserError where the steps cross the whole ball, or hardly move: another unit."""
        if self.step_size <= 2 and not 0 < self.steps * self.step_size < 0.1:
            return
        meant = (self.step_size / self.epsilon, self.step_size / 255 / self.epsilon)
        shares = [f"; did you mean {share:.3g}?" for share in meant if 0.05 < share <= 2]
        raise UserError(
            f"step_size={self.step_size:g}: a fraction of epsilon={self.epsilon:.4g}, not pixels; "
            f"steps={self.steps} of it cover {self.steps * self.step_size:.3g} epsilon"
            + (shares[0] if shares else ".")
        )

    @property
    def doubt(self) -> str | None:
        """Why the radius or the size of the steps may be a mistake; None: they may not."""
        k = round(255 * self.epsilon)
        if self.norm == "l2" and k / 255 <= LARGEST_LINF and abs(255 * self.epsilon - k) < 1e-3:
            return (
                f"epsilon={self.epsilon:.4g} in L2 is {255 * self.epsilon:.3g}/255 over the whole "
                "image, as L-inf radii are written"
            )
        if self.step_size > 1:
            return f"step_size={self.step_size:g}: a step is longer than epsilon, the radius"
        if 0 < self.steps * self.step_size < 1:
            return (
                f"steps={self.steps} of step_size={self.step_size:g}: together shorter than "
                "epsilon, the radius"
            )
        return None

    def make(self) -> attacks.Attack:
        """The attack itself."""
        search = attacks.ATTACKS[self.name]
        return search(self.norm, self.epsilon, self.steps, self.step_size, self.start)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the images of all stages come from."""

    name: str  # a TFDS name, folder:/path or digits
    dir: str  # of TFDS; "": $TFDS_DATA_DIR, or TFDS's default


@dataclasses.dataclass(frozen=True)
class Ema(Options):
    """An exponential moving average of the parameters, updated after each step (B22)."""

    decay: Share  # at the first step
    final_decay: Share  # at the last step; half a cosine between them
    own_seed: bool  # start from other random weights rather than from a copy
    used: bool  # scored and handed on in the place of the parameters


@dataclasses.dataclass(frozen=True)
class Stage(Options):
    """One training: a task, an attack or none, data, an optimizer."""

    task: Any  # options of the task of that name
    attack: AttackConfig | None
    split: str
    augment: Augment
    batch_size: Count
    accumulation: Count  # micro-batches that a batch is split into (gradient accumulation); 1: none
    epochs: NotNegative
    steps: MaybeWhole  # instead of epochs
    drop_path: Below1
    learned_positions: bool  # of the encoder; False: the sin-cos table stays as it is
    optimizer: Optimizer  # options of the optimizer of that name
    schedule: Schedule
    layer_decay: Part  # 1: none
    ema: Ema | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack and isinstance(self.task, Supervised) and self.task.erasing:
            raise UserError(
                "task.erasing: not with an attack, because its noise is outside of [0, 1], where "
                "attacked pixels are; set it to None."
            )
        if self.attack:
            with _under("attack"):
                self.attack.check_step()
        peak = peak_rate(self.optimizer, self.batch_size)
        if self.schedule.min_lr > peak:
            raise UserError(
                f"schedule.min_lr={self.schedule.min_lr}: must not be above the peak learning "
                f"rate, {peak:.3g}."
            )
        if isinstance(self.task, Byol) and self.ema is None:
            raise UserError("ema=None: BYOL predicts what its moving average says, it needs one.")
        if self.batch_size % self.unit(devices=1):
            factors = {
                f"accumulation={self.accumulation}, the parts of a batch": self.accumulation,
                f"task.mixing.group={self.group}, the images that are mixed": self.group,
            }
            said = ", times ".join(name for name, count in factors.items() if count > 1)
            raise UserError(f"batch_size={self.batch_size}: must be a multiple of {said}.")
        if self.task.views > 1 and self.batch_size == self.accumulation:
            raise UserError(
                f"batch_size={self.batch_size}, accumulation={self.accumulation}: each part needs "
                "2 images or more, because its batch norm and its loss compare them."
            )

    def unit(self, devices: int) -> int:
        """Images that a batch must be a multiple of, on so many devices."""
        return self.accumulation * math.lcm(self.group, devices)

    @property
    def classifies(self) -> bool:
        """Whether it makes a classifier, of images with labels."""
        return isinstance(self.task, Supervised)

    @property
    def averaged(self) -> bool:
        """Whether the moving average is what is scored and handed on, not the parameters."""
        return self.ema is not None and self.ema.used

    @property
    def group(self) -> int:
        """Images of a batch that belong together: a batch is a multiple of it."""
        mixing = self.task.mixing if isinstance(self.task, Supervised) else None
        return mixing.group if mixing else 1


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """Top-1 on a split, clean and under PGD."""

    split: str
    resize: Whole  # short side before the central crop, pixels; 0: no crop, the image is stretched
    batch_size: Count
    attacks: tuple[tuple[str, float, int], ...]  # (norm, epsilon, steps)
    attacked: Count  # images under attack: the first so many of the split (A24)
    reach: float  # steps * step size, in epsilons (A25: 2.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.reach <= 100:
            raise UserError(
                f"reach={self.reach}: steps times their size, in radii: must be from 1 to 100 "
                "(2.5 is usual)."
            )
        self.make_attacks()

    def make_attacks(self) -> list[AttackConfig]:
        """The attacks, in order."""
        made = []
        for i, (norm, epsilon, steps) in enumerate(self.attacks):
            if steps < 1:
                raise UserError(f"attacks[{i}] has {steps} steps: must be 1 or more.")
            with _under(f"attacks[{i}]"):
                made.append(AttackConfig("pgd", norm, epsilon, steps, self.reach / steps, "ball"))
        return made


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """A run: pre-training, fine-tuning, evaluation."""

    seed: Whole
    model: Architecture
    dtype: str  # of matrix products while training; evaluation is float32
    fsdp: bool  # parameters and optimizer state in parts over the devices, not whole on each
    remat: bool  # recompute each block's activations in the backward pass
    data: Data
    pretrain: Stage | None
    weights: str  # fine-tune the encoder of this stage folder instead of pre-training one here
    init_from: str  # pre-train from the encoder of this stage folder; "": from random weights
    finetune: Stage
    evaluate: Evaluation
    log_every: Count  # steps
    save_every: Count  # steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r}: choose from {', '.join(DTYPES)}.")
        resize, crop = self.evaluate.resize, self.model.image_size
        if 0 < resize < crop:
            raise UserError(
                f"evaluate.resize={resize} is below model.image_size={crop}: the crop would not "
                "fit."
            )
        if resize > LARGEST_RESIZE * crop:
            raise UserError(
                f"evaluate.resize={resize} is more than {LARGEST_RESIZE} times model.image_size="
                f"{crop}: the crop would be a speck of the image."
            )
        if self.init_from and "pretrain" not in self.stages:
            raise UserError(
                f"init_from={self.init_from!r}: there is no pre-training to start from it; "
                "weights is what fine-tuning starts from."
            )
        learned = [stage.learned_positions for stage in self.stages.values()]
        if learned == [True, False]:
            raise UserError(
                "finetune.learned_positions=False: pre-training trains positions, which would be "
                "lost; set it to True."
            )
        for name, stage in self.stages.items():
            with _under(f"{name}.task"):  # some options make no sense with this image and patch
                tasks.make(stage.task, ViT(self.model), classes=2)
        self._check_radii()

    @property
    def stages(self) -> dict[str, Stage]:
        """Those that are trained, by name, in their order."""
        if self.pretrain is None or self.weights:
            return {"finetune": self.finetune}
        return {"pretrain": self.pretrain, "finetune": self.finetune}

    def _check_radii(self) -> None:
        """Of all attacks: an L2 radius is large or small for so many values."""
        image = 3 * self.model.image_size**2
        made = [(f"evaluate.attacks[{i}]", attack, image)
                for i, attack in enumerate(self.evaluate.make_attacks())]  # fmt: skip
        for name, stage in self.stages.items():
            if stage.attack:
                values = image
                if isinstance(stage.task, Mae):  # the visible patches alone are attacked (A19)
                    values = stage.task.visible(self.model.grid**2) * 3 * self.model.patch**2
                made.append((f"{name}.attack", stage.attack, values))
        for path, attack, values in made:
            with _under(path):
                attacks.check_radius("epsilon", attack.norm, attack.epsilon, values)


# Fields whose dataclass is chosen by the key ``name`` beside their options.
_CHOICES: dict[str, Mapping[str, type]] = {
    "task": {name: row.options for name, row in tasks.TASKS.items()},
    "optimizer": OPTIMIZERS,
}


def parse(config: Mapping[str, Any]) -> Config:
    """A nested dict -> ``Config``. ``sources`` (where each value comes from) is left out.

    Raises:
      UserError: with the dotted key, the value, and what is accepted.
    """
    return _parse(Config, {k: v for k, v in config.items() if k != "sources"}, "config")


def _parse(cls: type, tree: Any, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}={tree!r}: expected a group of keys.")
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in tree:
        if key not in fields:
            raise UserError(f"{path}.{key}: unknown key; the keys here are {', '.join(fields)}.")
    for name in fields:
        if name not in tree:
            raise UserError(f"{path}.{name}: missing.")
    values = {name: _value(name, hints[name], tree[name], f"{path}.{name}") for name in fields}
    with _under(path):
        return cls(**values)


def _value(name: str, hint: Any, value: Any, path: str) -> Any:
    if name in _CHOICES:
        return _choice(_CHOICES[name], value, path)
    if isinstance(hint, types.UnionType):  # X | None
        inner = typing.get_args(hint)[0]
        return None if value is None else _value("", inner, value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"{path}={value!r}: expected a tuple{in_decimals(value)}.")
        inner = typing.get_args(hint)
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise UserError(f"{path}={value!r}: expected {len(inner)} values.")
        inner = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _value("", t, v, f"{path}[{i}]")
            for i, (t, v) in enumerate(zip(inner, value, strict=True))
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _parse(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < LARGEST_FLOAT else float("inf")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path}={value!r}: expected {hint.__name__}{in_decimals(value)}.")
    if hint is int and abs(value) > LARGEST:
        raise UserError(f"{path}={value!r}: must be from 0 to {LARGEST}.")
    if hint is float and value and not LEAST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        raise UserError(
            f"{path}={value!r}: must be 0, or a finite number from "
            f"{LEAST_FLOAT:.2g} to {LARGEST_FLOAT:.2g}: those are what float32 has."
        )
    return value


def _choice(choices: Mapping[str, type], tree: Any, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}={tree!r}: expected a group of keys.")
    name = tree.get("name")
    if not isinstance(name, str) or name not in choices:
        raise UserError(f"{path}.name={name!r}: choose from {', '.join(choices)}.")
    options = {k: v for k, v in tree.items() if k != "name"}
    return _parse(choices[name], options, path)
