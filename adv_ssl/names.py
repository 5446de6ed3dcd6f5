"""What methods and attacks are called where people read."""

from collections.abc import Mapping
from typing import Any

METHOD_TITLES = {
    "supervised": "Supervised",
    "rotnet": "RotNet",
    "mae": "MAE",
    "byol": "BYOL",
    "simclr": "SimCLR",
}
NORMS = {"linf": "L∞", "l2": "L2"}


def threat(attack: Mapping[str, Any]) -> str:
    """Norm and radius of an attack, as the paper writes them."""
    norm, epsilon = attack["norm"], attack["epsilon"]
    return f"{NORMS.get(norm, norm)} ε\xa0=\xa0{radius(norm, epsilon)}"


def axis(norm: str) -> str:
    """The label of an axis of radii."""
    return f"{NORMS.get(norm, norm)} radius" + ", in 1/255" * (norm == "linf")


def search_name(attack: Mapping[str, Any]) -> str:
    """The name of the search, such as PGD: that too where a record gives none."""
    return str(attack.get("name", "pgd")).replace("_", " ").upper()


def radius(norm: str, epsilon: float) -> str:
    """As the paper writes it: k/255 in L-inf, a number in L2."""
    return f"{255 * epsilon:.3g}/255" if norm == "linf" else f"{epsilon:g}"
