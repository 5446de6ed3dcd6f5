"""TPU chips and the topologies that are made of them."""

import math
import re
from typing import NamedTuple

from adv_ssl.errors import UserError


class Chip(NamedTuple):
    """Public figures of a chip."""

    flops: float  # FLOP/s of matrix products in bfloat16
    memory: int  # bytes of it that a program may use
    bandwidth: float  # bytes/s of its memory
    hertz: float  # cycles/s
    links: float  # bytes/s to and from other chips, all links and both directions together


# FLOP/s, bandwidth and links: cloud.google.com/tpu/docs/v5e, v5p and v6e. The rest is what libtpu
# 0.0.42 says: the memory in its refusals (of 16, 95 and 32 GB); the clock as FLOP/s divided by
# what the matrix units it compiles for do in a cycle: 4 and 8 of 128 x 128 multiply-adds, 4 of
# 256 x 256.
CHIPS = {
    "v5e": Chip(197e12, int(15.75 * 2**30), 819e9, 197e12 / (2 * 4 * 128**2), 200e9),
    "v5p": Chip(459e12, int(95.74 * 2**30), 2765e9, 459e12 / (2 * 8 * 128**2), 600e9),
    "v6e": Chip(918e12, int(31.25 * 2**30), 1640e9, 918e12 / (2 * 4 * 256**2), 448e9),
}


class Topology(NamedTuple):
    """A slice of a pod."""

    name: str  # as v5e:8x8
    chip: Chip
    chips: int


def topology(name: str) -> Topology:
    """``v5e:8x8`` -> 64 chips of v5e.

    Raises:
      UserError: no such chip, or not the form of a topology.
    """
    kind, _, grid = name.partition(":")
    sides = 3 if kind == "v5p" else 2
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{sides - 1}}}", grid):
        raise UserError(
            f"--topology={name}: expected CHIP:AxB, as v5e:8x8 or v6e:4x4, or v5p:2x2x1; chips are "
            f"{', '.join(CHIPS)}."
        )
    return Topology(name, CHIPS[kind], math.prod(map(int, grid.split("x"))))
