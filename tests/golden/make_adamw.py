"""Writes adamw.npz: steps of torch's AdamW with the parameter groups of fine-tuning.

The groups are spelt out: two blocks, so layers 0 to 3; decay for matrices alone; the rate of a
group is the step's rate times gamma^(3 - layer), as MAE's fine-tuning sets it.
"""

import pathlib

import numpy as np
import torch

GAMMA, DECAY, BETAS, EPS = 0.65, 0.3, (0.9, 0.95), 1e-8
RATES = (0.0, 0.05, 0.1, 0.03, 0.003)
GROUPS = {  # name: (shape, layer, decayed)
    "encoder/cls_token": ((1, 1, 4), 0, False),
    "encoder/pos_embed": ((1, 5, 4), 0, False),
    "encoder/patch_embed/kernel": ((6, 4), 0, True),
    "encoder/patch_embed/bias": ((4,), 0, False),
    "encoder/block_0/norm1/scale": ((4,), 1, False),
    "encoder/block_0/attn/qkv/kernel": ((4, 12), 1, True),
    "encoder/block_0/attn/qkv/bias": ((12,), 1, False),
    "encoder/block_1/mlp/fc2/kernel": ((8, 4), 2, True),
    "encoder/block_1/mlp/fc2/bias": ((4,), 2, False),
    "encoder/fc_norm/scale": ((4,), 3, False),
    "encoder/fc_norm/bias": ((4,), 3, False),
    "head/kernel": ((4, 3), 3, True),
    "head/bias": ((3,), 3, False),
}


def make() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    golden = {"rates": np.array(RATES, np.float32)}
    parameters, gradients = {}, {}
    for name, (shape, _, _) in GROUPS.items():
        start = rng.standard_normal(shape).astype(np.float32)
        slopes = rng.standard_normal((len(RATES), *shape)).astype(np.float32)
        if name == "head/bias":
            slopes *= np.float32(1e-8)  # where epsilon decides
        golden[f"params/{name}"], golden[f"grads/{name}"] = start, slopes
        parameters[name] = torch.from_numpy(start).double().requires_grad_()
        gradients[name] = torch.from_numpy(slopes).double()
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameters[name]],
                "lr_scale": GAMMA ** (3 - layer),
                "weight_decay": DECAY if decayed else 0.0,
            }
            for name, (_, layer, decayed) in GROUPS.items()
        ],
        betas=BETAS,
        eps=EPS,
    )
    steps = {name: [] for name in GROUPS}
    for step, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        for name, p in parameters.items():
            p.grad = gradients[name][step]
        optimizer.step()
        for name, p in parameters.items():
            steps[name].append(p.detach().numpy().astype(np.float32))
    return golden | {f"steps/{name}": np.stack(values) for name, values in steps.items()}


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("adamw.npz"), **make())
