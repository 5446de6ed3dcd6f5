"""Makes converted weights fit our encoder: its architecture, positions and pixel normalisation."""

import math
import re

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from adv_ssl.checkpoint import POSITIONS
from adv_ssl.errors import UserError
from adv_ssl.models.vit import (
    MEAN,
    STD,
    Architecture,
    ViT,
    init_encoder,
    is_sincos,
    position_table,
    sincos_table,
)
from adv_ssl.weights.layouts import Arrays, Converted, Row

HEAD_WIDTH = 64
_TELLING = ("patch_embed", "block_0/mlp/fc1")  # whose kernels tell the sizes
_FINALS = ("fc_norm", "norm")  # of pooled features, of tokens: an encoder has one of them
_FRESH = "not in the file: drawn anew by a stage that has one"


def architecture_of(params: Arrays, heads: int | None, image_size: int | None) -> Architecture:
    """The shape of the encoder that ``params`` are of, before anything is resized.

    ``heads``: None, one for each 64 of the width, as in every released ViT. ``image_size`` is read
    only where no position embedding tells it.

    Raises:
      UserError: a block or another part that tells a size is missing, or is not square.
    """
    depth = _depth(params)
    kernel, fc1 = (_needed(params, f"encoder/{name}/kernel") for name in _TELLING)
    patch = math.isqrt(kernel.shape[0] // 3)
    if kernel.shape[0] != 3 * patch**2:
        raise UserError(
            f"the patch embedding reads {kernel.shape[0]} numbers: not a square of 3 channels."
        )
    if POSITIONS in params:
        shape = params[POSITIONS].shape
        places = shape[1] - 1 if len(shape) == 3 and shape[1] else 0
        if not places or math.isqrt(places) ** 2 != places:
            raise UserError(f"positions of shape {shape}: only a square grid is accepted.")
        image_size = math.isqrt(places) * patch
    if image_size is None:
        raise UserError(
            "it has no position embedding, so that its image size is unknown: "
            "give the one it was trained at as --image_size."
        )
    width, mlp = kernel.shape[1], fc1.shape[1]
    if heads is None and width % HEAD_WIDTH:
        raise UserError(
            f"the number of heads is unknown: width {width} is not a multiple of {HEAD_WIDTH}, "
            "give it as --heads."
        )
    return Architecture(image_size, patch, width, depth, heads or width // HEAD_WIDTH, mlp)


def _needed(params: Arrays, name: str) -> np.ndarray:
    if name not in params or params[name].ndim != 2:
        raise UserError(f"{name} is missing: the file is not whole.")
    return params[name]


def _depth(params: Arrays) -> int:
    """The number of blocks, which must be 0, 1, 2 and so on."""
    found = {int(m[1]) for name in params if (m := re.match(r"encoder/block_(\d+)/", name))}
    for i in range(len(found)):
        if i not in found:
            raise UserError(f"block {i} is missing, there are others up to {max(found)}.")
    return len(found)


def missing_rows(params: Arrays, architecture: Architecture, optional: frozenset[str]) -> list[Row]:
    """A row for each parameter of our encoder that ``params`` have not: ``optional``, a final norm.

    A head may be missing as a whole.

    Raises:
      UserError: another one is missing, has another shape, or is none of ours.
    """
    expected = _shapes(architecture)
    head = [params[name] for name in ("head/kernel", "head/bias") if name in params]
    if head:
        classes = head[0].shape[-1:]
        expected |= {"head/kernel": (architecture.width, *classes), "head/bias": classes}
    missing = {name for name in expected if name not in params}
    finals = ({f"encoder/{norm}/{part}" for part in ("scale", "bias")} for norm in _FINALS)
    needed = sorted(missing - optional - next((pair for pair in finals if pair <= missing), set()))
    if needed:
        more = f" and {len(needed) - 1} more" * (len(needed) > 1)
        raise UserError(f"{needed[0]}{more} is missing: the file is not whole.")
    for name, shape in expected.items():
        if name in params and params[name].shape != shape:
            raise UserError(f"{name} is {params[name].shape} there and {shape} here.")
    unknown = [n for n in params if n.startswith("encoder/") and n not in expected]
    if unknown:
        raise UserError(f"{unknown[0]}: our encoder has no such parameter.")
    if any(not np.isfinite(array).all() for array in params.values()):
        raise UserError("it contains numbers that are not finite.")
    return [Row("", name, "missing", _FRESH) for name in sorted(missing)]


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every parameter of the encoder, with either of the final norms."""
    shapes: dict[str, tuple[int, ...]] = {}
    for pooled in (True, False):
        encoder = ViT(architecture, pooled=pooled)
        tree = jax.eval_shape(lambda key, e=encoder: init_encoder(e, key)[1], jax.random.key(0))
        flat = flatten_dict(tree, sep="/")
        shapes |= {f"encoder/{name}": leaf.shape for name, leaf in flat.items()}
    return shapes


def resize_positions(made: Converted, old: Architecture, image_size: int) -> None:
    """Positions for another image size: the fixed table is recomputed, a learned one resized.

    Bicubic with antialiasing, as timm and unlike MAE, whose own is without.
    """
    grid = image_size // old.patch
    positions = made.params.get(POSITIONS)
    if positions is None or grid == old.grid:
        return
    if is_sincos(positions[0]):
        made.params[POSITIONS] = sincos_table(grid, old.width)[None]
        how = f"the fixed sin-cos table, recomputed for {grid} x {grid} patches"
    else:
        places = positions[0, 1:].reshape(old.grid, old.grid, old.width)
        resized = jax.image.resize(places, (grid, grid, old.width), "cubic", antialias=True)
        resized = np.asarray(resized).reshape(1, -1, old.width)
        made.params[POSITIONS] = np.concatenate([positions[:, :1], resized], axis=1)
        how = f"bicubic from {old.grid} x {old.grid} to {grid} x {grid} patches"
    made.change(POSITIONS, "re-shaped", how)


def compute_positions(made: Converted, architecture: Architecture) -> None:
    """big_vision's fixed table, where its file has none: other frequencies than MAE's (B6)."""
    if POSITIONS in made.params:
        return
    quarter = architecture.width // 4
    omega = 10000.0 ** (-np.arange(quarter) / (quarter - 1))
    made.params[POSITIONS] = position_table(architecture.grid, omega)[None]
    made.rows.append(Row("", POSITIONS, "computed", "big_vision's sincos2d table"))


def fold_normalisation(made: Converted, mean: np.ndarray, std: np.ndarray) -> None:
    """The patch embedding for pixels normalised by our MEAN and STD instead of ``mean``, ``std``.

    (x - mean) / std = ((x - MEAN) / STD * STD + MEAN - mean) / std: affine, as the embedding is.
    """
    if np.array_equal(mean, MEAN) and np.array_equal(std, STD):
        return
    kernel = made.params["encoder/patch_embed/kernel"].astype(np.float64)
    repeats = len(kernel) // 3
    mean, std, our_mean, our_std = (
        np.tile(np.asarray(v, np.float64), repeats)[:, None] for v in (mean, std, MEAN, STD)
    )
    shift = (kernel * (our_mean - mean) / std).sum(axis=0)
    for part, value in (
        ("kernel", kernel * our_std / std),
        ("bias", made.params["encoder/patch_embed/bias"] + shift),
    ):
        name = f"encoder/patch_embed/{part}"
        made.params[name] = value.astype(np.float32)
        made.change(name, "re-shaped", "its pixel normalisation changed into ours")
