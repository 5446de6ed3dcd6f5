"""MAE: predict the patches that are hidden from those that are not (paper 3.1, eq. 4)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from adv_ssl.errors import UserError
from adv_ssl.keys import named
from adv_ssl.models.mae_decoder import Decoder
from adv_ssl.models.vit import (
    DEEPEST,
    MEAN,
    STD,
    ViT,
    apply,
    encode_patches,
    init_encoder,
    patchify,
    unpatchify,
)
from adv_ssl.ranges import Count, Options, Whole
from adv_ssl.task import Aux, Batch, Prepared, PyTree, Task, pixels


@dataclasses.dataclass(frozen=True)
class Mae(Options):
    """Options of the task: the share of patches that is hidden, and the decoder."""

    mask_ratio: float
    width: Count
    depth: Whole  # blocks
    heads: Count
    mlp: Count  # hidden width of a block's MLP
    views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > DEEPEST:
            raise UserError(f"depth={self.depth}: must be {DEEPEST} blocks or fewer.")
        if self.width % 4 or self.width % self.heads:
            raise UserError(
                f"width={self.width}: must be a multiple of 4 and of heads={self.heads}."
            )

    def visible(self, patches: int) -> int:
        """How many of an image's patches are seen. UserError: none of them, or all (B15)."""
        seen = int(patches * (1 - self.mask_ratio))
        if not 0 < seen < patches:
            fitting = f"one that leaves 1 to {patches - 1}; 0.75 is usual."
            raise UserError(
                f"mask_ratio={self.mask_ratio} of {patches} patches leaves {seen} visible: choose "
                + (fitting if patches > 1 else "a smaller model.patch.")
            )
        return seen


class Masked(NamedTuple):
    """What is to be predicted, and where the visible patches stand: of n visible of N patches."""

    visible: Array  # [B, n]: places of the visible patches
    restore: Array  # [B, N]: row of each place in [visible, removed]; removed where >= n (B16)
    target: Array  # [B, N, P]: clean patches, each with mean 0 and variance 1 (B17)
    mean: Array  # [B, N, 1]: of each clean patch, in units of STD: to undo the normalisation
    std: Array  # [B, N, 1]


def make(options: Mae, encoder: ViT, classes: int) -> Task:
    """MAE whose ``x`` is the visible patches in pixels, so that no other can be attacked (A19)."""
    del classes
    a = encoder.architecture
    encoder = encoder.clone(pooled=False)
    seen = options.visible(a.grid**2)
    hidden = a.grid**2 - seen
    decoder = Decoder(
        options.width,
        options.depth,
        options.heads,
        options.mlp,
        outputs=a.patch**2 * 3,
        dtype=encoder.dtype,
        remat=encoder.remat,
    )

    def init(key: Array) -> PyTree:
        tokens, encoder_params = init_encoder(encoder, named(key, "encoder"))
        restore = jnp.arange(a.grid**2)[None]
        variables = decoder.init(named(key, "decoder"), tokens[:, : 1 + seen], restore)
        return {"encoder": encoder_params, "decoder": variables["params"]}

    def prepare(params: PyTree, ema: PyTree, batch: Batch, key: Array) -> Prepared:
        del params, ema
        patches = patchify(pixels(batch), a.patch)
        noise = jax.random.uniform(named(key, "mask"), patches.shape[:2])
        order = noise.argsort(axis=1)
        x = jnp.take_along_axis(patches, order[:, :seen, None], axis=1)
        return Prepared(x, Masked(order[:, :seen], order.argsort(axis=1), *normalised(patches)))

    def loss(params: PyTree, x: Array, context: Masked, key: Array | None) -> tuple[Array, Aux]:
        tokens = encode_patches(encoder, params["encoder"], x, context.visible, key)
        prediction = apply(decoder, params["decoder"], tokens, context.restore)
        errors = jnp.square(prediction - context.target).mean(axis=-1)
        removed = context.restore >= seen
        return (errors * removed).sum(axis=1) / hidden, {"prediction": prediction}  # B18

    return Task(init, prepare, loss)


def normalised(patches: Array) -> tuple[Array, Array, Array]:
    """Pixels [B, N, P] -> (target [B, N, P], and each patch's mean and deviation [B, N, 1]) (B17).

    Of the mean/std-normalised pixels; the variance is the unbiased one.
    """
    values = (patches.reshape(*patches.shape[:2], -1, 3) - MEAN) / STD
    values = values.reshape(patches.shape)
    mean = values.mean(axis=-1, keepdims=True)
    std = jnp.sqrt(values.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    return (values - mean) / std, mean, std


def pictures(x: Array, context: Masked, aux: Aux) -> dict[str, Array]:
    """The image, what is seen of it, grey where hidden, and what is predicted there: [B, H, W, 3].

    A prediction has no brightness and contrast of its own, the loss does not ask for them: those of
    the clean patch are lent to it.
    """
    patch = round((x.shape[-1] / 3) ** 0.5)
    seen = x.shape[1]

    def in_pixels(normalised: Array) -> Array:
        values = normalised * context.std + context.mean
        values = values.reshape(*values.shape[:2], -1, 3) * STD + MEAN
        return jnp.clip(values.reshape(normalised.shape), 0, 1)

    removed = (context.restore >= seen)[..., None]
    rows = jnp.pad(x, ((0, 0), (0, removed.shape[1] - seen), (0, 0)))
    rows = jnp.take_along_axis(rows, context.restore[..., None], axis=1)
    shown = {
        "original": in_pixels(context.target),
        "input": jnp.where(removed, 0.5, rows),
        "reconstruction": jnp.where(removed, in_pixels(aux["prediction"]), rows),
    }
    return {name: unpatchify(patches, patch) for name, patches in shown.items()}
