"""Writes weights.npz, and in weights/ small files of weights as others publish them.

timm_vit.safetensors is timm's own classifier, mae_full.pth has the names of MAE's release with its
decoder, big_vision.npz and vision_transformer.npz those of Google's two. weights.npz has what timm
computes with them: logits, or tokens after the last norm, of one set of images; and timm's own
resizing of position embeddings. All is computed in float64 and stored in float32.
"""

import pathlib
import tempfile

import numpy as np
import torch
from make_vit import MEAN, STD, randomise, to_numpy
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "weights"
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SIZE, PATCH, WIDTH, HEADS = 16, 4, 16, 2  # of the others, with one block
SMALL = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 1, "num_heads": HEADS}
HALF = torch.full((3,), 0.5, dtype=torch.float64)


def normalised(images: np.ndarray, mean: Tensor, std: Tensor) -> Tensor:
    return ((torch.from_numpy(images).double() - mean) / std).permute(0, 3, 1, 2)


def mae_state(vit: VisionTransformer, rng: np.random.Generator) -> dict[str, Tensor]:
    """The parameters of an encoder and a decoder by the names of MAE's release."""
    width = 8
    state = {k: v.float() for k, v in vit.state_dict().items()}
    decoder = VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=width,
        depth=1,
        num_heads=2,
        mlp_ratio=2,
        num_classes=0,
    )
    inner = randomise(decoder, rng).float().state_dict()
    renamed = {"blocks.": "decoder_blocks.", "norm.": "decoder_norm."}
    for old, new in renamed.items():
        state |= {new + k.removeprefix(old): v for k, v in inner.items() if k.startswith(old)}
    shapes = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, (SIZE // PATCH) ** 2 + 1, width),
        "decoder_embed.weight": (width, WIDTH),
        "decoder_embed.bias": (width,),
        "decoder_pred.weight": (PATCH**2 * 3, width),
        "decoder_pred.bias": (PATCH**2 * 3,),
    }
    for name, shape in shapes.items():
        state[name] = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return state


def google(rng: np.random.Generator, big_vision: bool) -> dict[str, np.ndarray]:
    """Random arrays by the names and in the shapes of Google's releases."""
    places, hidden, per_head = (SIZE // PATCH) ** 2, 2 * WIDTH, WIDTH // HEADS
    norm2, attention, mlp = (1, 0, 0) if big_vision else (2, 1, 3)
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    shapes = {
        "cls": (1, 1, WIDTH),
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        positions: (1, places + (not big_vision), WIDTH),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, 5),
        "head/bias": (5,),
    }
    block = "Transformer/encoderblock_0"
    attend = f"{block}/MultiHeadDotProductAttention_{attention}"
    for norm in (0, norm2):
        shapes[f"{block}/LayerNorm_{norm}/scale"] = (WIDTH,)
        shapes[f"{block}/LayerNorm_{norm}/bias"] = (WIDTH,)
    for part in ("query", "key", "value"):
        shapes[f"{attend}/{part}/kernel"] = (WIDTH, HEADS, per_head)
        shapes[f"{attend}/{part}/bias"] = (HEADS, per_head)
    shapes[f"{attend}/out/kernel"] = (HEADS, per_head, WIDTH)
    shapes[f"{attend}/out/bias"] = (WIDTH,)
    for dense, (fan_in, fan_out) in enumerate(((WIDTH, hidden), (hidden, WIDTH))):
        shapes[f"{block}/MlpBlock_{mlp}/Dense_{dense}/kernel"] = (fan_in, fan_out)
        shapes[f"{block}/MlpBlock_{mlp}/Dense_{dense}/bias"] = (fan_out,)
    arrays = {}
    for name, shape in shapes.items():
        spread = 1.2 / np.sqrt(WIDTH) if name.endswith("kernel") else 0.3
        values = spread * rng.standard_normal(shape) + name.endswith("scale")
        arrays[f"params/{name}" if big_vision else name] = values.astype(np.float32)
    return arrays


def tokens_of_google(path: pathlib.Path, images: np.ndarray, big_vision: bool) -> Tensor:
    """timm reads the file itself."""
    vit = VisionTransformer(**SMALL, mlp_ratio=2, num_classes=5, no_embed_class=big_vision)
    vit.load_pretrained(str(path))
    return vit.double().forward_features(normalised(images, HALF, HALF))


def make(folder: pathlib.Path | None = None) -> dict[str, np.ndarray]:
    """The numbers; the files too, in ``folder``."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return make(pathlib.Path(scratch))
    rng = np.random.default_rng(0)
    images = rng.random((2, 32, 32, 3), np.float32)
    small = images[:, :SIZE, :SIZE]

    classifier = VisionTransformer(**TIMM, mlp_ratio=2, num_classes=5, global_pool="avg")
    randomise(classifier, rng)
    state = {name: p.float().contiguous() for name, p in classifier.state_dict().items()}
    save_file(state, folder / "timm_vit.safetensors")
    positions = classifier.pos_embed.detach()
    golden = {
        "images": images,
        "timm/logits": to_numpy(classifier(normalised(images, MEAN, STD))),
        "timm/logits_half": to_numpy(classifier(normalised(images, HALF, HALF))),
        "timm/pos_embed": to_numpy(positions),
    }
    for grid in (3, 6):
        resized = resample_abs_pos_embed(positions, [grid, grid], verbose=False)
        golden[f"timm/pos_embed_{grid}"] = to_numpy(resized)

    mae = randomise(VisionTransformer(**SMALL, mlp_ratio=2, num_classes=0), rng)
    torch.save({"model": mae_state(mae, rng)}, folder / "mae_full.pth")
    golden["mae/tokens"] = to_numpy(mae.forward_features(normalised(small, MEAN, STD)))

    for name in ("vision_transformer", "big_vision"):
        path, big_vision = folder / f"{name}.npz", name == "big_vision"
        np.savez_compressed(path, **google(rng, big_vision))
        golden[f"{name}/tokens"] = to_numpy(tokens_of_google(path, small, big_vision))
    return golden


def contents(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays in the files, by file and name, as torch, safetensors and numpy read them."""
    from safetensors.numpy import load_file

    found = {"timm_vit.safetensors": load_file(folder / "timm_vit.safetensors")}
    state = torch.load(folder / "mae_full.pth", weights_only=True)["model"]
    found["mae_full.pth"] = {name: to_numpy(value) for name, value in state.items()}
    for name in ("vision_transformer.npz", "big_vision.npz"):
        with np.load(folder / name) as file:
            found[name] = dict(file)
    return {f"{file}/{name}": a for file, arrays in found.items() for name, a in arrays.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "weights.npz", **make(FOLDER))
