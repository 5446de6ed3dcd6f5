"""Weights of others in, ours out: ``python -m adv_ssl.weights import|export``.

``files`` tells formats by their content, ``torch_zip`` reads a .pth without torch and without
running it; ``layouts`` knows the names of MAE, timm, Google's ViT and big_vision; ``fit`` makes
them our architecture, positions and pixels; ``selftest`` has the outputs that travel with the
weights; ``transfer`` is the two commands.
"""
