"""What the value of an option may be, said once, where its type stands."""

import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from adv_ssl.errors import UserError


class Range(NamedTuple):
    """Of the values of a field, which is ``Annotated`` with it; of ``None`` nothing is asked."""

    words: str
    holds: Callable[[Any], bool]


_NOT_NEGATIVE = Range("0 or more", lambda x: x >= 0)
Share = Annotated[float, Range("in [0, 1]", lambda x: 0 <= x <= 1)]
Below1 = Annotated[float, Range("in [0, 1)", lambda x: 0 <= x < 1)]
Part = Annotated[float, Range("in (0, 1]", lambda x: 0 < x <= 1)]
Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Count = Annotated[int, Range("1 or more", lambda x: x >= 1)]
Whole = Annotated[int, _NOT_NEGATIVE]
MaybeWhole = Annotated[int | None, _NOT_NEGATIVE]


class Options:
    """Of a dataclass the base whose fields must be in the ranges that their types name."""

    def __post_init__(self) -> None:
        """UserError where one is not. What a class asks besides comes after this."""
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for allowed in getattr(hint, "__metadata__", ()):
                if value is not None and not allowed.holds(value):
                    raise UserError(f"{name}={value}: must be {allowed.words}.")
