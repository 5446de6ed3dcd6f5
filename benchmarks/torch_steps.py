"""The same training steps in PyTorch: the best we can write, plain and by torch.compile.

The context of a step is made once without gradients, an attack takes gradients of the input alone,
optimizers are PyTorch's fused one or use its multi-tensor functions. Left out, in favour of
PyTorch: what our step does for the log, and its check that all is finite.
"""

import contextlib
import copy
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adv_ssl import optim
from adv_ssl.config import AttackConfig, Config, Stage
from adv_ssl.tasks.rotnet import TURNS
from benchmarks import steps
from benchmarks.steps import Case
from benchmarks.torch_models import Decoder, Projector, Vit, copy_weights, patchify

torch.set_num_threads(os.cpu_count() or 1)

COMPILER = shutil.which(os.environ.get("CXX", "g++"))  # without one there is no torch.compile
_compiled = functools.partial(torch.compile, dynamic=False)

Batch = dict[str, Tensor]
X = tuple[Tensor, ...]  # what is attacked: images, the visible patches, or two views
Losses = Callable[[X, Any, bool], Tensor]  # (x, context, whether paths are dropped) -> [B]
Target = Callable[[Tensor, bool], Tensor]  # BYOL's moving average: a view -> its projection


class Method(nn.Module):
    """A method: ``prepare`` makes x and its context, a call gives the losses [B]."""

    def __init__(self, config: Config, stage: Stage, pooled: bool = True):
        super().__init__()
        self.patch, self.options = config.model.patch, stage.task
        self.encoder = Vit(config.model, stage.drop_path, stage.learned_positions, pooled)

    def prepare(self, batch: Batch, target: Target | None) -> tuple[X, Any]:
        raise NotImplementedError

    def features(self, images: Tensor, drop: bool) -> Tensor:
        """[B, H, W, 3] in [0, 1] -> [B, D]."""
        return self.encoder(patchify(images, self.patch), None, drop)


class Classifier(Method):
    """What supervised training and RotNet share."""

    classes: int

    def __init__(self, config: Config, stage: Stage, classes: int):
        super().__init__(config, stage)
        self.classes = classes
        self.head = nn.Linear(config.model.width, classes)

    def smoothed(self, labels: Tensor) -> Tensor:
        """Soft targets [B, C]."""
        smoothing = self.options.label_smoothing
        hard = functional.one_hot(labels.long(), self.classes)
        return hard * (1 - smoothing) + smoothing / self.classes

    def logits(self, images: Tensor, drop: bool = False) -> Tensor:
        """[B, H, W, 3] -> [B, C]."""
        return self.head(self.features(images, drop))

    def forward(self, x: X, context: Tensor, drop: bool) -> Tensor:
        return functional.cross_entropy(self.logits(x[0], drop), context, reduction="none")


class Supervised(Classifier):
    """With mixup or cutmix."""

    def prepare(self, batch: Batch, target: Target | None) -> tuple[X, Tensor]:
        images, targets = batch["image"] / 255, self.smoothed(batch["label"])
        mixing = self.options.mixing
        if mixing is None:
            return (images,), targets
        cut = bool(torch.rand(()) < mixing.cutmix_prob)
        beta = mixing.cutmix if cut else mixing.mixup
        own = float(torch.distributions.Beta(beta, beta).sample())
        if cut:
            size = images.shape[1]
            half = int(size * (1 - own) ** 0.5) // 2
            row, column = torch.randint(size, (2,)).tolist()
            box = slice(max(0, row - half), row + half), slice(max(0, column - half), column + half)
            images = images.clone()
            images[:, *box] = images.flip(0)[:, *box]
            inside = [len(range(*part.indices(size))) for part in box]
            own = 1 - inside[0] * inside[1] / size**2
        else:
            images = images.lerp(images.flip(0), 1 - own)
        return (images,), targets.lerp(targets.flip(0), 1 - own)


class RotNet(Classifier):
    """Which of the four rotations."""

    def __init__(self, config: Config, stage: Stage, classes: int):
        super().__init__(config, stage, TURNS)

    def prepare(self, batch: Batch, target: Target | None) -> tuple[X, Tensor]:
        images = batch["image"]
        turns = torch.randint(TURNS, (len(images),))
        turned = [torch.rot90(image, int(k)) for image, k in zip(images, turns, strict=True)]
        return (torch.stack(turned) / 255,), self.smoothed(turns)


class Mae(Method):
    """The hidden patches."""

    def __init__(self, config: Config, stage: Stage, classes: int):
        super().__init__(config, stage, pooled=False)
        self.decoder = Decoder(stage.task, config.model)
        self.seen = stage.task.visible(config.model.grid**2)

    def prepare(self, batch: Batch, target: Target | None) -> tuple[X, Any]:
        patches = patchify(batch["image"] / 255, self.patch)
        order = torch.rand(patches.shape[:2]).argsort(1)
        at = order[:, : self.seen]
        x = patches.gather(1, at[..., None].expand(-1, -1, patches.shape[2]))
        values = (patches - self.encoder.mean) / self.encoder.std
        variance, mean = torch.var_mean(values, -1, keepdim=True)
        return (x,), (at, order.argsort(1), (values - mean) / (variance + 1e-6).sqrt())

    def forward(self, x: X, context: Any, drop: bool) -> Tensor:
        at, restore, target = context
        prediction = self.decoder(self.encoder(x[0], at, drop), restore)
        errors = (prediction - target).square().mean(-1)
        return (errors * (restore >= self.seen)).sum(1) / (restore.shape[1] - self.seen)


class Byol(Method):
    """The moving average's projection of the other view."""

    def __init__(self, config: Config, stage: Stage, classes: int):
        super().__init__(config, stage)
        self.projector = Projector(config.model.width, stage.task)
        self.predictor = Projector(stage.task.output, stage.task)

    def project(self, view: Tensor, drop: bool) -> Tensor:
        """[B, H, W, 3] -> [B, output]."""
        return self.projector(self.features(view, drop))

    def prepare(self, batch: Batch, target: Target | None) -> tuple[X, X]:
        assert target
        views = tuple((batch["image"] / 255).unbind(1))
        return views, tuple(target(view, False) for view in views)

    def forward(self, x: X, context: X, drop: bool) -> Tensor:
        predictions = [self.predictor(self.project(view, drop)) for view in x]
        angles = [
            functional.cosine_similarity(prediction.float(), target.float())
            for prediction, target in zip(predictions, reversed(context), strict=True)
        ]
        return 4 - 2 * angles[0] - 2 * angles[1]


METHODS = {"supervised": Supervised, "rotnet": RotNet, "mae": Mae, "byol": Byol}


def attacked(losses: Callable[[X], Tensor], x: X, attack: AttackConfig) -> X:
    """PGD in L2, from a uniform point of the ball."""

    def in_length(d: Tensor) -> Tensor:
        return d.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (d.ndim - 1))

    def into_ball(x: Tensor, point: Tensor) -> Tensor:
        d = point - x
        return (x + d * (attack.epsilon / in_length(d)).clamp_max(1)).clamp(0, 1)

    def start(x: Tensor) -> Tensor:
        d = torch.randn_like(x)
        shares = torch.rand(len(x), *[1] * (x.ndim - 1)) ** (1 / x[0].numel())
        return into_ball(x, x + attack.epsilon * shares / in_length(d) * d)

    points = [start(leaf) for leaf in x]
    for _ in range(attack.steps):
        points = [point.requires_grad_() for point in points]
        slopes = torch.autograd.grad(losses(tuple(points)).sum(), points)
        with torch.no_grad():
            length = attack.step_size * attack.epsilon
            points = [
                into_ball(leaf, point + length / in_length(slope) * slope)
                for leaf, point, slope in zip(x, points, slopes, strict=True)
            ]
    return tuple(points)


class Lars:
    """LARS by multi-tensor functions: decay, trust ratio, momentum, then the learning rate."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], options: optim.Lars, lr: float):
        self.parameters = [p for _, p in named]
        self.adapted = [p for name, p in named if not _plain(name)]
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        self.options, self.lr = options, lr

    @torch.no_grad()
    def step(self) -> None:
        adapted = [p.grad for p in self.adapted]
        torch._foreach_add_(adapted, self.adapted, alpha=self.options.weight_decay)
        trust = torch._foreach_norm(self.adapted)
        torch._foreach_div_(trust, [n.clamp_min(1e-12) for n in torch._foreach_norm(adapted)])
        torch._foreach_mul_(trust, self.options.trust)
        torch._foreach_mul_(adapted, trust)
        torch._foreach_mul_(self.momentum, self.options.momentum)
        torch._foreach_add_(self.momentum, [p.grad for p in self.parameters])
        torch._foreach_add_(self.parameters, self.momentum, alpha=-self.lr)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None


def _plain(name: str) -> bool:
    """Whether it is a bias or a norm's scale."""
    return name.endswith("bias") or "norm" in name


def _optimizer(module: nn.Module, stage: Stage) -> Any:
    """The stage's, at a constant rate."""
    options, named = stage.optimizer, list(module.named_parameters())
    lr = optim.peak_rate(options, stage.batch_size) / 10
    if isinstance(options, optim.Lars):
        return Lars(named, options, lr)
    assert isinstance(options, optim.AdamW)
    tokens = "token" in options.decayed
    decayed = [
        n for n, _ in named if not _plain(n) and "pos" not in n and (tokens or "token" not in n)
    ]
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": options.weight_decay},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(options.b1, options.b2), eps=1e-8, fused=True)


class Trained(NamedTuple):
    """What a step works on, shared by all its variants."""

    module: Method
    average: nn.Module | None
    optimizer: Any
    decay: float
    batch: Batch
    dtype: torch.dtype


def _trained(case: Case) -> Trained:
    config, stage = steps.parsed(case, "nominal")
    torch.manual_seed(0)
    module = METHODS[case.method](config, stage, case.classes)
    average = copy.deepcopy(module).requires_grad_(False) if stage.ema else None
    batch = {name: torch.from_numpy(value) for name, value in steps.batch(case).items()}
    decay = stage.ema.decay if stage.ema else 1.0
    dtype = getattr(torch, case.dtype)
    return Trained(module, average, _optimizer(module, stage), decay, batch, dtype)


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of weights inside, and nothing kept for them."""
    module.requires_grad_(False)
    yield
    module.requires_grad_(True)


def _step(on: Trained, losses: Losses, target: Target | None, attack: Any) -> float:
    """One step; its loss."""
    with torch.autocast("cpu", on.dtype, enabled=on.dtype != torch.float32):
        with torch.no_grad():
            x, context = on.module.prepare(on.batch, target)
        if attack:
            with _frozen(on.module):
                x = attacked(lambda x: losses(x, context, False), x, attack)
        loss = losses(x, context, True).mean()
    loss.backward()
    on.optimizer.step()
    on.optimizer.zero_grad()
    if on.average:
        parameters = list(on.module.parameters())
        torch._foreach_lerp_(list(on.average.parameters()), parameters, 1 - on.decay)
    return loss.item()


def prepared(case: Case) -> dict[tuple[str, str], Callable[[], float]]:
    """By ("eager" or "compiled", threat), a function that runs a step and returns its loss."""
    on = _trained(case)
    target = on.average.project if isinstance(on.average, Byol) else None
    variants = {"eager": (on.module, target)}
    if COMPILER:
        variants["compiled"] = (_compiled(on.module), target and _compiled(target))
    return {
        (how, threat): functools.partial(_step, on, *parts, steps.parsed(case, threat)[1].attack)
        for threat in steps.THREATS
        for how, parts in variants.items()
    }


def evaluation(case: Case, attack: AttackConfig) -> dict[tuple[str, str], Callable[[], Any]]:
    """By ("eager" or "compiled", "clean" or "pgd10"), a function that predicts the classes."""
    config, stage = steps.parsed(case, "nominal")
    module = Supervised(config, stage, case.classes).requires_grad_(False)
    batch = {name: torch.from_numpy(value) for name, value in steps.batch(case).items()}
    targets = module.smoothed(batch["label"])

    def predict(losses: Losses, logits: Callable[[Tensor], Tensor], attacks: bool) -> np.ndarray:
        x: X = (batch["image"] / 255,)
        if attacks:
            x = attacked(lambda x: losses(x, targets, False), x, attack)
        with torch.no_grad():
            return logits(x[0]).argmax(-1).numpy()

    variants = {"eager": (module, module.logits)}
    if COMPILER:
        variants["compiled"] = (_compiled(module), _compiled(module.logits))
    return {
        (how, name): functools.partial(predict, *parts, attacks)
        for how, parts in variants.items()
        for name, attacks in (("clean", False), ("pgd10", True))
    }


def difference(case: Case) -> float:
    """The largest relative difference of an image's loss from ours, with our weights and inputs.

    It is the check that the two do the same work: a hundred-thousandth is rounding.
    """
    params, x, context, ours = steps.once(case)
    config, stage = steps.parsed(case, "nominal")
    module = METHODS[case.method](config, stage, case.classes)
    copy_weights(module, params)

    def tensors(tree: Any) -> Any:
        leaves = tree if isinstance(tree, tuple) else (tree,)
        return tuple(torch.from_numpy(np.array(leaf)) for leaf in leaves)

    made = tensors(context)
    if case.method == "mae":
        made = (made[0].long(), made[1].long(), made[2])
    elif case.method != "byol":
        (made,) = made
    with torch.no_grad():
        theirs = module(tensors(x), made, False).numpy()
    return float(np.abs(theirs / ours - 1).max())
