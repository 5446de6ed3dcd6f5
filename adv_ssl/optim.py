"""Optimizers, schedules and the rules that say what each parameter gets.

Rules go by the parameter's name, and a name that no rule knows is an error: a new parameter never
falls into a default.
"""

import dataclasses
import re
from typing import Any, ClassVar

import jax
import optax

from adv_ssl.errors import UserError
from adv_ssl.ranges import Below1, NotNegative, Options, Positive, Share
from adv_ssl.task import PyTree

# The kinds of parameters that a recipe may decay: first match wins.
KINDS = (
    (r"encoder/cls_token", "token"),
    (r"encoder/pos_embed", "position"),
    (r"decoder/mask_token", "token"),
    (r".*/kernel", "matrix"),
    (r".*/bias", "bias"),
    (r".*/scale", "norm"),
)
# By name, not by rank: a bias stays a bias whatever its shape (D10).
_ALWAYS_PLAIN = ("bias", "norm")  # neither decayed nor adapted by LARS

# The layer of a parameter, -1 for the last (D6).
LAYERS = (
    (r"encoder/(patch_embed/.*|cls_token|pos_embed)", lambda match: 0),
    (r"encoder/block_(\d+)/.*", lambda match: int(match[1]) + 1),
    (r"encoder/(fc_norm|norm)/.*|(head|projector|predictor|decoder)/.*", lambda match: -1),
)


@dataclasses.dataclass(frozen=True)
class AdamW(Options):
    """AdamW with decoupled decay, multiplied by the learning rate (C, D2)."""

    lr: NotNegative
    scaled: bool  # True: lr is for 256 images, the peak is lr * batch_size / 256; False: the peak
    weight_decay: NotNegative
    b1: Below1
    b2: Below1
    decayed: tuple[str, ...]  # the kinds of parameters that are decayed

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kinds(self.decayed)

    def transform(self, decayed: PyTree, plain: PyTree) -> optax.GradientTransformation:
        """Gradients -> the direction before the learning rate."""
        del plain
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, eps=1e-8),
            optax.add_decayed_weights(self.weight_decay, decayed),
        )


@dataclasses.dataclass(frozen=True)
class Lars(Options):
    """LARS as BYOL uses it: decay, trust ratio, momentum, then the learning rate (C-BYOL LARS).

    ``optax.lars`` has the learning rate before the momentum: another thing while the rate changes.
    """

    lr: NotNegative
    scaled: bool
    weight_decay: NotNegative
    momentum: Below1
    trust: Positive  # eta
    decayed: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kinds(self.decayed)

    def transform(self, decayed: PyTree, plain: PyTree) -> optax.GradientTransformation:
        """Gradients -> the direction before the learning rate."""
        adapted = jax.tree.map(lambda p: not p, plain)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, decayed),
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=self.trust), adapted),
            optax.trace(self.momentum),
        )


@dataclasses.dataclass(frozen=True)
class Sgd(Options):
    """SGD with momentum, no Nesterov, on a gradient of bounded length, without decay (E-SGD)."""

    lr: NotNegative
    scaled: bool
    momentum: Below1
    clip: Positive  # largest norm of the whole gradient
    decayed: ClassVar[tuple[str, ...]] = ()

    def transform(self, decayed: PyTree, plain: PyTree) -> optax.GradientTransformation:
        """Gradients -> the direction before the learning rate."""
        del decayed, plain
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.trace(self.momentum))


Optimizer = AdamW | Lars | Sgd
OPTIMIZERS = {"adamw": AdamW, "lars": Lars, "sgd": Sgd}


def peak_rate(options: Optimizer, batch_size: int) -> float:
    """The highest learning rate: scaled here, once, and nowhere else (C, D3)."""
    return options.lr * batch_size / 256 if options.scaled else options.lr


def _check_kinds(decayed: tuple[str, ...]) -> None:
    kinds = [kind for _, kind in KINDS if kind not in _ALWAYS_PLAIN]
    for kind in decayed:
        if kind not in kinds:
            raise UserError(f"decayed has {kind!r}: the kinds are {', '.join(kinds)}.")


@dataclasses.dataclass(frozen=True)
class Schedule(Options):
    """Linear warm-up from 0, then half a cosine down to ``min_lr``; one value per step."""

    warmup: Share  # share of all steps
    min_lr: NotNegative  # where the cosine ends, not scaled by the batch (D4)


def learning_rate(schedule: Schedule, peak: float, steps: int) -> optax.Schedule:
    """The learning rate of each of ``steps`` steps; step 0 of a warm-up has rate 0 (C, D4)."""
    warmup = round(schedule.warmup * steps)
    ramp = optax.linear_schedule(0.0, peak, max(1, warmup))
    return optax.join_schedules([ramp, cosine(peak, schedule.min_lr, steps - warmup)], [warmup])


def cosine(first: float, last: float, steps: int) -> optax.Schedule:
    """Half a cosine from ``first`` at step 0 to ``last`` at step ``steps`` (B22, D4)."""
    way = optax.cosine_decay_schedule(first - last, max(1, steps))
    return lambda step: last + way(step)


def name_of(path: tuple[Any, ...]) -> str:
    """A leaf's path as ``encoder/block_0/attn/qkv/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_rule(rules: tuple[tuple[str, Any], ...], name: str) -> tuple[re.Match[str], Any]:
    for pattern, value in rules:
        if match := re.fullmatch(pattern, name):
            return match, value
    raise ValueError(f"no rule of adv_ssl/optim.py knows the parameter {name}: add one.")


def kinds(params: PyTree) -> PyTree:
    """The kind of every parameter: ``KINDS``. Raises ValueError on an unknown name."""
    return jax.tree_util.tree_map_with_path(lambda p, _: _by_rule(KINDS, name_of(p))[1], params)


def layers(params: PyTree) -> PyTree:
    """The layer of every parameter: 0 embeddings, i + 1 block i, blocks + 1 all the rest (D6)."""

    def layer(path: tuple[Any, ...], _: Any) -> int:
        match, id_of = _by_rule(LAYERS, name_of(path))
        return id_of(match)

    ids = jax.tree_util.tree_map_with_path(layer, params)
    last = max(jax.tree.leaves(ids)) + 1
    return jax.tree.map(lambda i: last if i == -1 else i, ids)


def layer_scales(gamma: float, last: int) -> list[float]:
    """gamma^(last - id) for id 0..last: the last layer keeps the whole learning rate (D7, D8)."""
    return [gamma ** (last - i) for i in range(last + 1)]


def make(options: Optimizer, layer_decay: float, params: PyTree) -> optax.GradientTransformation:
    """Gradients -> the direction of the update, before it is scaled by the learning rate.

    ``params`` may be abstract: only names are read. The layer's scale comes after the decay and
    multiplies whatever the rate is, ``min_lr`` too (D4, D9).
    """
    kind, ids = kinds(params), layers(params)
    decayed = jax.tree.map(lambda k: k in options.decayed, kind)
    plain = jax.tree.map(lambda k: k in _ALWAYS_PLAIN, kind)
    direction = options.transform(decayed, plain)
    if layer_decay == 1.0:
        return direction
    scales = layer_scales(layer_decay, max(jax.tree.leaves(ids)))
    by_layer = optax.multi_transform({i: optax.scale(s) for i, s in enumerate(scales)}, ids)
    return optax.chain(direction, by_layer)


def table(options: Optimizer, peak: float, layer_decay: float, params: PyTree) -> str:
    """What each layer gets, for the log: parameters, decayed ones, peak learning rate, scale."""
    ids, kind = layers(params), kinds(params)
    last = max(jax.tree.leaves(ids))
    scales = layer_scales(layer_decay, last)
    rows = []
    leaves = list(zip(*map(jax.tree.leaves, (ids, kind, params)), strict=True))
    for i, scale in enumerate(scales):
        here = [(k, p.size) for j, k, p in leaves if j == i]
        name = "embeddings" if i == 0 else "fc_norm, heads" if i == last else f"block_{i - 1}"
        decayed = sum(size for k, size in here if k in options.decayed)
        total = sum(size for _, size in here)
        rows.append(
            f"{i:>5}  {name:<14} {total:>12,} {decayed:>12,}  {scale:<9.3g} {peak * scale:.3g}"
        )
    total = sum(p.size for p in jax.tree.leaves(params))
    head = f"{'layer':>5}  {'':<14} {'parameters':>12} {'decayed':>12}  {'scale':<9} peak rate"
    return "\n".join([head, *rows, f"{'':>5}  {'total':<14} {total:>12,}"])
