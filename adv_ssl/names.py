"""What methods and attacks are called where people read."""

from collections.abc import Mapping
from typing import Any

METHODS = {
    "supervised": "Supervised",
    "rotnet": "RotNet",
    "mae": "MAE",
    "byol": "BYOL",
    "simclr": "SimCLR",
}
NORMS = {"linf": "L∞", "l2": "L2"}


def threat(attack: Mapping[str, Any]) -> str:
    """Norm and radius of an attack, as the paper writes them."""
    return f"{NORMS.get(attack['norm'], attack['norm'])} ε\xa0=\xa0{radius(attack)}"


def axis(norm: str) -> str:
    """The label of an axis of radii."""
    return f"{NORMS.get(norm, norm)} radius" + ", in 1/255" * (norm == "linf")


def searched(attack: Mapping[str, Any]) -> str:
    """What searched the ball, such as PGD: where nothing is said it was that."""
    return str(attack.get("name", "pgd")).replace("_", " ").upper()


def radius(attack: Mapping[str, Any]) -> str:
    """As the paper writes it: k/255 in L-inf, a number in L2."""
    epsilon = attack["epsilon"]
    return f"{255 * epsilon:.3g}/255" if attack["norm"] == "linf" else f"{epsilon:g}"
