"""The paper's grid as data: what is pre-trained, fine-tuned, transferred and scored, at each scale.

A cell is one command and the folder it works in. A pre-training is shared: the cell of the first
layer-wise decay pre-trains and fine-tunes, those of the others fine-tune its encoder again.
"""

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from adv_ssl.evaluation.rules import VARIANTS
from adv_ssl.recipes import METHODS, THREATS, paper

NOMINAL = (0.0,)
GAMMAS = (0.65, 0.75, 0.85, 0.95)  # the paper's layer-wise decays
Radii = Mapping[tuple[str, str], tuple[float, ...]]  # (method, threat) -> epsilons


@dataclasses.dataclass(frozen=True)
class Scale:
    """One size of the whole study."""

    recipe: str  # behind the configuration's file name
    radii: Radii
    gammas: tuple[float, ...]  # layer-wise decays of fine-tuning; the first one's cell pre-trains
    seeds: tuple[int, ...]
    suite: str  # that scores the variants
    variants: tuple[str, ...]  # rows of Figures 2 and 3; Figure 1 has their unweighted mean (F5)
    robust: tuple[str, str, float]  # method, threat, epsilon of Figure 5
    swept: float | None = None  # the one decay of all radii but a method's first; None: all decays
    held_out: str = ""  # of the training set, scored by each run: to select by; "": nothing is
    l2_unit: float = 1.0  # what an L2 radius of 1 of the paper is here
    transfers: tuple[str, ...] = ()  # sets of Table 1, from the encoders of Table 1's radii
    scoring: tuple[str, ...] = ()  # more flags of adv_ssl.evaluate
    attack: tuple[str, ...] = ()  # more flags of Figure 5's evaluation
    training: tuple[str, ...] = ()  # more flags of all training
    # By stage, pre-training's called after its method; what is not there is as in the recipe
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def decays(self, method: str, threat: str, epsilon: float) -> tuple[float, ...]:
        """The layer-wise decays that an encoder is fine-tuned with."""
        first = epsilon == self.radii[method, threat][0]
        return self.gammas if first or self.swept is None else (self.swept,)


def _same(methods: tuple[str, ...], **radii: tuple[float, ...]) -> Radii:
    """The same radii for all methods."""
    return {(m, threat): radii.get(threat, NOMINAL) for m in methods for threat in THREATS}


_IN_255 = tuple(k / 255 for k in (1, 2, 4, 6, 8))

# P:C: 4 methods x (nominal, 5 L-inf, 6 L2 radii) = 48 pre-trainings, 192 fine-tunings
_IMAGENET = Scale(
    recipe="imagenet",
    radii=_same(METHODS, linf=_IN_255, l2=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
    gammas=GAMMAS,
    seeds=(0,),
    suite="imagenet",
    variants=VARIANTS,
    robust=("byol", "l2", 2.0),
    transfers=tuple(paper.TRANSFER_SETS),
)
# The same grid on small images; an L2 radius is about a seventh: the same change per pixel
_CIFAR10 = Scale(
    recipe="cifar10",
    radii=_same(METHODS, linf=_IN_255, l2=(0.035, 0.07, 0.15, 0.25, 0.5, 1.0)),
    gammas=GAMMAS,
    seeds=(0, 1, 2),
    suite="cifar10",
    variants=("cifar10", "conflict", "c"),
    robust=("byol", "l2", 0.25),
    l2_unit=32 / 224,
)
# Some radii of that list each, short pre-trainings, a part of the test set
_TINY = dataclasses.replace(
    _CIFAR10,
    radii={
        **{(method, "nominal"): NOMINAL for method in METHODS},
        ("supervised", "linf"): (2 / 255, 6 / 255),
        ("supervised", "l2"): (0.25, 0.5),
        ("rotnet", "linf"): (2 / 255, 4 / 255),
        ("rotnet", "l2"): (0.25, 0.5),
        ("mae", "linf"): (1 / 255, 2 / 255),
        ("mae", "l2"): (0.07, 0.15),
        ("byol", "linf"): (2 / 255, 1 / 255),
        ("byol", "l2"): (0.25, 0.15),
    },
    gammas=(0.5, 0.65, 0.75, 0.85, 0.95),
    swept=0.75,
    held_out="train[45000:]",
    scoring=("--images=1000", "--corrupted={store}/.corrupted"),
    training=(
        "--config.pretrain.split=train[:45000]",
        "--config.evaluate.split=train[45000:]",
        "--config.evaluate.attacks=(('l2', 0.25, 10),)",
    ),
    attack=("--attack=pgd", "--radii=0.125,0.25,0.5", "--images=1000"),
    steps={"supervised": 3000, "rotnet": 3000, "mae": 5000, "byol": 2000, "finetune": 800},
)


def _followed_up(times: int = 1, recipe: str = _TINY.recipe) -> Scale:
    """``tiny`` with longer pre-trainings or a larger model, of two methods, nominal and at their
    first L2 radius.
    """
    followed = {(m, t): _TINY.radii[m, t][:1] for m in ("mae", "rotnet") for t in ("nominal", "l2")}
    return dataclasses.replace(
        _TINY,
        recipe=recipe,
        radii=followed,
        gammas=(0.75,),
        robust=("", "", 0.0),  # Figure 5 is of the scale itself
        steps={n: k if n == "finetune" else k * times for n, k in _TINY.steps.items()},
    )


# Follow-ups of a scale: times of its steps, and its name with a larger model
LONGER = {"tiny": {f"tiny_x{times}": times for times in (2, 4, 8)}}
LARGER = {"tiny": {"tiny_ti": "ViT-Ti"}}
SCALES = {
    "imagenet": _IMAGENET,
    "cifar10": _CIFAR10,
    "tiny": _TINY,
    **{name: _followed_up(times) for name, times in LONGER["tiny"].items()},
    "tiny_ti": _followed_up(recipe="cifar10_ti"),
}


def follow_ups(scale: str) -> tuple[str, ...]:
    """The scales that follow ``scale`` up: longer pre-trainings, then larger models."""
    return (*LONGER.get(scale, ()), *LARGER.get(scale, ()))


class Model(NamedTuple):
    """How a classifier came to be, but for its seed."""

    method: str
    threat: str  # nominal, linf or l2
    epsilon: float  # pixels in [0, 1]; nominal: 0
    gamma: float  # layer-wise decay of fine-tuning


class Cell(NamedTuple):
    """One command."""

    name: str  # its folder, from the store
    kind: str  # pretrain (and fine-tune once), finetune, transfer, scores, baseline or robust
    module: str  # adv_ssl.main or adv_ssl.evaluate
    flags: tuple[str, ...]  # {store} stands for the store's folder
    needs: str  # the cell that comes before; "": none
    stage: str = ""  # whose weights it takes, of the cell it needs: pretrain or finetune
    rows: tuple[str, ...] = ()  # of results.json, that an evaluation has to score

    def flag(self, name: str) -> str | None:
        """The value of a flag; ``None``: the command has it not."""
        given = (flag.partition("=") for flag in self.flags)
        return next((value for key, _, value in given if key == f"--{name}"), None)

    def takes(self, whole: bool) -> bool:
        """Whether a score counts: one over a sample of a set, where a sample was asked for."""
        return whole or self.flag("images") is not None

    def asks(self, attack: str, images: int) -> bool:
        """Whether a score is one that a cell under attack asks for: by an attack, such as pgd-l2
        ("": clean), on so many images.
        """
        own = f"{self.flag('attack') or 'apgd'}-{self.flag('norm')}"
        return attack in ("", own) and self.flag("images") in (None, str(images))

    def arguments(self, store: str) -> list[str]:
        """The command line behind ``python``."""
        flags = [flag.replace("{store}", store) for flag in self.flags]
        return ["-m", self.module, *flags, f"--workdir={store}/{self.name}"]

    def command(self, store: str) -> str:
        """The command line for a shell, to be given in the project's folder."""
        return shlex.join(["python", *self.arguments(store)])


def run_command(scale: str, store: object, only: str = "") -> str:
    """The command line that runs what is missing of a scale, or of the cells ``only`` names."""
    words = ["python", "-m", "adv_ssl.paper", "run", f"--scale={scale}", f"--store={store}"]
    return shlex.join([*words, *([f"--only={only}"] if only else [])])


def threat_folder(threat: str, epsilon: float) -> str:
    """nominal, linf_4-255 or l2_0.5."""
    if threat == "linf":
        return f"linf_{255 * epsilon:g}-255"
    return f"{threat}_{epsilon:g}" if threat == "l2" else threat


def run_name(scale: str, model: Model, seed: int) -> str:
    """The name of the cell that fine-tunes ``model``."""
    place = f"{scale}/{model.method}/{threat_folder(model.threat, model.epsilon)}/seed{seed}"
    return f"{place}/gamma{model.gamma:g}"


@functools.cache
def cells(scale: str) -> tuple[Cell, ...]:
    """Every cell of a scale, each after the one it needs."""
    return tuple(_cells(scale, SCALES[scale]))


def _cells(name: str, scale: Scale) -> Iterator[Cell]:
    for (method, threat), epsilons in scale.radii.items():
        for epsilon in epsilons:
            for seed in scale.seeds:
                gammas = scale.decays(method, threat, epsilon)
                first = Model(method, threat, epsilon, gammas[0])
                for gamma in gammas:
                    yield from _model(name, scale, first._replace(gamma=gamma), first, seed)
                if scale.transfers and epsilon == table1_radius(method, threat):
                    yield from _transfers(name, scale, first, seed)


def table1_radius(method: str, threat: str) -> float:
    """Of the encoders that Table 1 transfers."""
    return 0.0 if threat == "nominal" else float(paper.RADII[method, threat].value)


def _model(name: str, scale: Scale, model: Model, encoder: Model, seed: int) -> Iterator[Cell]:
    """Training of a model from the encoder that is pre-trained with ``encoder``, its scores."""
    first, this = (run_name(name, which, seed) for which in (encoder, model))
    stages = {"pretrain": model.method, "finetune": "finetune"}
    flags = [
        f"--config=configs/{model.method}_{model.threat}.py:{scale.recipe}",
        f"--config.seed={seed}",
        *([f"--config.pretrain.attack.epsilon={model.epsilon!r}"] if model.epsilon else []),
        *scale.training,
        *[f"--config.{s}.steps={scale.steps[n]}" for s, n in stages.items() if n in scale.steps],
        f"--config.finetune.layer_decay={model.gamma}",
    ]
    if this == first:
        yield Cell(this, "pretrain", "adv_ssl.main", tuple(flags), "")
    else:
        flags.append(f"--config.weights={{store}}/{first}/pretrain")
        yield Cell(this, "finetune", "adv_ssl.main", tuple(flags), first, "pretrain")
    suite = f"--suite={scale.suite}", *scale.scoring
    yield _scores("scores", scale.suite, this, "finetune", suite, scale.variants)
    if this == first and (model.method, model.threat) == ("supervised", "nominal"):
        # D14: the zero line is this pre-training itself, before it is fine-tuned
        yield _scores("baseline", "baseline", this, "pretrain", suite, scale.variants)
    if model[:3] == scale.robust:
        robust = "--suite=robust", f"--norm={model.threat}", *scale.attack
        yield _scores("robust", "robust", this, "finetune", robust)


def _scores(
    kind: str,
    folder: str,
    run: str,
    stage: str,
    flags: tuple[str, ...],
    rows: tuple[str, ...] = (),
) -> Cell:
    weights = f"--weights={{store}}/{run}/{stage}"
    name = f"{run}/scores/{folder}"
    return Cell(name, kind, "adv_ssl.evaluate", (weights, *flags), run, stage, rows)


def _transfers(name: str, scale: Scale, model: Model, seed: int) -> Iterator[Cell]:
    first = run_name(name, model, seed)
    for dataset in scale.transfers:
        for optimizer in paper.TRANSFERS:
            flags = (
                f"--config=configs/transfer_{optimizer}.py:{dataset},{scale.recipe}",
                f"--config.seed={seed}",
                f"--config.weights={{store}}/{first}/pretrain",
            )
            run = f"{first.rpartition('/')[0]}/transfer_{dataset}_{optimizer}"
            yield Cell(run, "transfer", "adv_ssl.main", flags, first, "pretrain")
