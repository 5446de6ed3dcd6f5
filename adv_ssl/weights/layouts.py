"""The names and shapes of others, and ours: MAE and timm (torch), Google's ViT and big_vision.

Every array of a file is used, re-shaped or dropped for a reason; a name that no layout knows is
refused, because nobody could say what is lost without it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from adv_ssl.errors import UserError

Arrays = Mapping[str, np.ndarray]


class Row(NamedTuple):
    """What became of one array of a file, or where one parameter of ours comes from."""

    source: str  # its name there; "": none
    target: str  # our name; "": none
    status: str  # used, re-shaped, computed, dropped or missing
    how: str = ""


@dataclasses.dataclass
class Converted:
    """A file in our names and shapes, float32, with what its layout alone tells."""

    params: dict[str, np.ndarray]  # by our names: encoder/block_0/attn/qkv/kernel
    rows: list[Row]
    google: bool = False  # of Google's: see ``notes`` and the pixels' mean and std
    heads: int | None = None
    optional: frozenset[str] = frozenset({"encoder/cls_token"})  # what the layout may do without
    notes: list[str] = dataclasses.field(default_factory=list)

    def change(self, target: str, status: str, how: str) -> None:
        """Adds ``how`` to what the report says of our parameter ``target``."""
        for i, row in enumerate(self.rows):
            if row.target == target:
                text = ", ".join(filter(None, (row.how, how)))
                self.rows[i] = row._replace(status=status, how=text)


def _pair(theirs: str, ours: str, separator: str = ".", weight: str = "weight") -> dict[str, str]:
    kind = "scale" if "norm" in ours else "kernel"
    return {
        f"{theirs}{separator}{weight or kind}": f"{ours}/{kind}",
        f"{theirs}{separator}bias": f"{ours}/bias",
    }


_flax_pair = functools.partial(_pair, separator="/", weight="")

# Their names and ours; # is the number of a block.
_TIMM = {
    "cls_token": "encoder/cls_token",
    "pos_embed": "encoder/pos_embed",
    **_pair("patch_embed.proj", "encoder/patch_embed"),
    **_pair("blocks.#.norm1", "encoder/block_#/norm1"),
    **_pair("blocks.#.attn.qkv", "encoder/block_#/attn/qkv"),
    **_pair("blocks.#.attn.proj", "encoder/block_#/attn/proj"),
    **_pair("blocks.#.norm2", "encoder/block_#/norm2"),
    **_pair("blocks.#.mlp.fc1", "encoder/block_#/mlp/fc1"),
    **_pair("blocks.#.mlp.fc2", "encoder/block_#/mlp/fc2"),
    **_pair("norm", "encoder/norm"),
    **_pair("fc_norm", "encoder/fc_norm"),
    **_pair("head", "head"),
}


def _google_block(norm2: int, attention: int, mlp: int) -> dict[str, str]:
    """A block's parts are numbered as they were made: each release in its own way."""
    block, ours = "Transformer/encoderblock_#", "encoder/block_#"
    attend = f"{block}/MultiHeadDotProductAttention_{attention}"
    return {
        **_flax_pair(f"{block}/LayerNorm_0", f"{ours}/norm1"),
        **_flax_pair(f"{attend}/query", f"{ours}/attn/q"),
        **_flax_pair(f"{attend}/key", f"{ours}/attn/k"),
        **_flax_pair(f"{attend}/value", f"{ours}/attn/v"),
        **_flax_pair(f"{attend}/out", f"{ours}/attn/proj"),
        **_flax_pair(f"{block}/LayerNorm_{norm2}", f"{ours}/norm2"),
        **_flax_pair(f"{block}/MlpBlock_{mlp}/Dense_0", f"{ours}/mlp/fc1"),
        **_flax_pair(f"{block}/MlpBlock_{mlp}/Dense_1", f"{ours}/mlp/fc2"),
    }


_GOOGLE = {
    "cls": "encoder/cls_token",
    "pos_embedding": "encoder/pos_embed",
    "Transformer/posembed_input/pos_embedding": "encoder/pos_embed",
    **_flax_pair("embedding", "encoder/patch_embed"),
    **_google_block(norm2=2, attention=1, mlp=3),  # vision_transformer
    **_google_block(norm2=1, attention=0, mlp=0),  # big_vision
    **_flax_pair("Transformer/encoder_norm", "encoder/norm"),
}

_TIMM_DROPPED = {
    r"mask_token|decoder_.*": "MAE's decoder: only the encoder is handed on",
    r"pre_logits\..*": "belongs to a head that ours has not",
    r"attn_pool\..*": "attention pooling: ours is the mean of the patch tokens",
}
_GOOGLE_DROPPED = {
    r"MAPHead_0/.*": "attention pooling: ours is the mean of the patch tokens",
    r"pre_logits/.*": "belongs to a head that ours has not",
    r"head/.*": "classifies the cls token or normed tokens; ours the norm of the mean of patches",
}
_REFUSED = {
    r".*\bls[12]\.gamma|.*\bgamma_[12]": "LayerScale",
    r".*\b[qk]_norm\..*|.*/(query|key)_norm/.*": "norms of queries and keys",
    r"reg_token|.*\bregister_tokens": "register tokens",
    r"dist_token": "a distillation token",
    r"norm_pre\..*": "a norm before the blocks",
    r".*\brope\b.*|.*relative_position.*": "positions inside of attention",
}


def convert(arrays: Arrays) -> Converted:
    """Any of the known layouts in our names.

    Raises:
      UserError: of no known layout, or with a part that our encoder cannot represent.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" and array.dtype != ml_dtypes.bfloat16:
            raise UserError(f"{name} is of type {array.dtype}: expected numbers.")
        if not array.size:
            raise UserError(f"{name} is {array.shape}: there is no number in it.")
    if any(name.startswith("encoder/patch_embed/") for name in arrays):
        rows = [Row(name, name, "used") for name in arrays]
        optional = frozenset({"encoder/cls_token", "encoder/pos_embed"})  # a fixed table is none
        ours = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
        return Converted(ours, rows, optional=optional)
    if "patch_embed.proj.weight" in arrays:
        return _from_timm(arrays)
    for prefix in ("", "params/", "opt/target/"):
        if f"{prefix}embedding/kernel" in arrays:
            return _from_google(arrays, prefix)
    raise UserError(
        f"its names ({', '.join(sorted(arrays)[:3])}, ...) are of no ViT that is known here: "
        "accepted are those of MAE, timm, Google's vision_transformer and big_vision."
    )


def _from_timm(arrays: Arrays) -> Converted:
    made = _translate(arrays, _TIMM, _TIMM_DROPPED, _of_torch)
    _put_cls_position(made)
    if "encoder/cls_token" not in made.params:
        drop_head(made, "there is no cls token there, one takes part in attention here")
    elif "encoder/norm/scale" in made.params:
        drop_head(made, "it reads the cls token or normed tokens there, the tokens' mean here")
    elif "encoder/fc_norm/scale" not in made.params:
        drop_head(made, "there is no norm before it there, one is here")
    elif any(re.match(r"pre_logits\.|attn_pool\.", name) for name in arrays):
        drop_head(made, "it reads what is dropped here")
    return made


def drop_head(made: Converted, why: str) -> None:
    """Takes the classifier out of ``made``: its encoder stays."""
    for i, row in enumerate(made.rows):
        if row.target.startswith("head/"):
            del made.params[row.target]
            made.rows[i] = Row(row.source, "", "dropped", why)


def _from_google(arrays: Arrays, prefix: str) -> Converted:
    inner = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    made = _translate(inner, _GOOGLE, _GOOGLE_DROPPED, _of_flax)
    made.rows = [row._replace(source=prefix + row.source) for row in made.rows]
    outer = [name for name in arrays if not name.startswith(prefix)]
    made.rows += [Row(name, "", "dropped", "state of its training") for name in outer]
    queries = [a for name, a in inner.items() if name.endswith("/query/kernel")]
    made.heads = queries[0].shape[1] if queries else None
    _join_qkv(made)
    _put_cls_position(made)
    made.google = True
    made.notes.append(
        "GELU is exact here and its tanh approximation there: features differ by about 1e-3, "
        "as they do in timm's conversion"
    )
    return made


def _translate(
    arrays: Arrays,
    table: Mapping[str, str],
    dropped: Mapping[str, str],
    reshape: Callable[[str, str, np.ndarray], tuple[np.ndarray, str]],
) -> Converted:
    """The arrays that ``table`` knows in our names; the others dropped for a reason, or refused."""
    made = Converted({}, [])
    for name, array in arrays.items():
        number = re.search(r"(?<=\bblocks\.)\d+|(?<=\bencoderblock_)\d+", name)
        block = number[0] if number else ""
        template = name if number is None else f"{name[: number.start()]}#{name[number.end() :]}"
        if template not in table:
            made.rows.append(Row(name, "", "dropped", _why(name, dropped)))
            continue
        target = table[template].replace("#", block)
        if target in made.params:
            raise UserError(f"{name}: a second {target}, in another layout's name.")
        value, how = reshape(name, target, array)
        if value.dtype != np.float32:
            how = ", ".join(filter(None, (how, f"{value.dtype} -> float32")))
        with np.errstate(over="ignore"):  # what becomes infinite is refused by its name
            made.params[target] = value.astype(np.float32, copy=False)
        made.rows.append(Row(name, target, "re-shaped" if how else "used", how))
    return made


def _why(name: str, dropped: Mapping[str, str]) -> str:
    for pattern, why in dropped.items():
        if re.fullmatch(pattern, name):
            return why
    for pattern, what in _REFUSED.items():
        if re.fullmatch(pattern, name):
            raise UserError(f"{name}: {what}, which our encoder does not have: no import.")
    raise UserError(
        f"{name}: unknown parameter; without it the encoder could be another one: save only the "
        "model's own parameters, by the names of its release."
    )


def _axes(name: str, array: np.ndarray, count: int) -> None:
    if array.ndim != count:
        raise UserError(f"{name} is {array.shape}: expected {count} axes.")


def _rgb_square(name: str, channels: int, rows: int, columns: int) -> None:
    if channels != 3 or rows != columns:
        raise UserError(
            f"{name} reads {rows} x {columns} patches of {channels} channels: "
            "only square ones of 3 are accepted."
        )


def _of_torch(name: str, target: str, array: np.ndarray) -> tuple[np.ndarray, str]:
    """(our shape, what was done)."""
    if target == "encoder/patch_embed/kernel":
        _axes(name, array, 4)
        _rgb_square(name, array.shape[1], *array.shape[2:])
        matrix = array.transpose(2, 3, 1, 0).reshape(-1, len(array))
        return matrix, "[out, channel, row, column] -> [row column channel, out]"
    if target.endswith("/kernel"):
        _axes(name, array, 2)
        return array.T, "[out, in] -> [in, out]"
    return array, ""


def _of_flax(name: str, target: str, array: np.ndarray) -> tuple[np.ndarray, str]:
    """(our shape, what was done)."""
    part = target.removeprefix("encoder/").split("/", 1)[-1]
    if target == "encoder/patch_embed/kernel":
        _axes(name, array, 4)
        _rgb_square(name, array.shape[2], *array.shape[:2])
        return array.reshape(-1, array.shape[-1]), "[row, column, channel, out] -> a matrix"
    if part in ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"):
        _axes(name, array, 3)
        return array.reshape(len(array), -1), "heads in one axis, q, k and v in one matrix"
    if part in ("attn/q/bias", "attn/k/bias", "attn/v/bias"):
        _axes(name, array, 2)
        return array.reshape(-1), "heads in one axis, q, k and v in one vector"
    if part == "attn/proj/kernel":
        _axes(name, array, 3)
        return array.reshape(-1, array.shape[-1]), "heads in one axis"
    return array, ""


def _join_qkv(made: Converted) -> None:
    """q, k and v of a block become one; where one is missing the others stay, to be reported."""
    for name in [n for n in made.params if "/attn/q/" in n]:
        names = [name.replace("/q/", f"/{part}/") for part in "qkv"]
        if all(n in made.params for n in names):
            parts = [made.params.pop(n) for n in names]
            if len({part.shape for part in parts}) > 1:
                shapes = ", ".join(str(part.shape) for part in parts)
                raise UserError(f"{name}: q, k and v have different shapes, {shapes}.")
            made.params[name.replace("/q/", "/qkv/")] = np.concatenate(parts, axis=-1)
    made.rows = [
        row._replace(target=re.sub(r"/attn/[qkv]/", "/attn/qkv/", row.target)) for row in made.rows
    ]


def _put_cls_position(made: Converted) -> None:
    """Where cls has no position there, it gets a zero here."""
    name = "encoder/pos_embed"
    positions = made.params.get(name)
    if positions is None or positions.ndim != 3 or math.isqrt(n := positions.shape[1]) ** 2 != n:
        return
    made.params[name] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    made.change(name, "re-shaped", "a zero put in front, for cls")


def to_timm(params: Arrays, patch: int) -> tuple[dict[str, np.ndarray], list[Row]]:
    """Our parameters by timm's names and in its shapes; what it has no name for is dropped."""
    theirs = {ours: name for name, ours in _TIMM.items()}
    arrays: dict[str, np.ndarray] = {}
    rows = []
    for name, array in params.items():
        number = re.search(r"(?<=^encoder/block_)\d+", name)
        block = number[0] if number else ""
        template = name if number is None else f"encoder/block_#{name[number.end() :]}"
        if template not in theirs:
            rows.append(Row(name, "", "dropped", "serves its task alone; export .npz to keep it"))
            continue
        target = theirs[template].replace("#", block)
        value = array.T if name.endswith("/kernel") else array
        if name == "encoder/patch_embed/kernel":
            value = value.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2)
        arrays[target] = value
        same = value is array
        rows.append(Row(name, target, *(("used",) if same else ("re-shaped", "as timm has it"))))
    return arrays, rows
