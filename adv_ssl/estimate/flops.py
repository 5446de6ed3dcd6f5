"""FLOPs of matrix products, counted in a traced function.

What is counted is what the method asks for, a multiplication and an addition being two: not what a
compiler makes of it, and not the element-wise rest, which is 1 to 3% (section H has XLA's count of
both). A loop counts as often as it runs; XLA's own count takes its body once.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def matmul_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a program.

    Raises:
      ValueError: products in a loop whose length is not known beforehand, or in a custom kernel.
    """
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        out, kernel = _shape(equation.outvars[0]), _shape(equation.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(out) * math.prod(kernel) // outputs
    inner = [matmul_flops(jaxpr) for jaxpr in _inside(params.values())]
    if name in ("while", "pallas_call") and any(inner):
        raise ValueError(f"matrix products in a {name}: how often they run is not known.")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inside(values: Any) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple):
            yield from _inside(value)
