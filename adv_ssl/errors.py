"""What a run may end in: a user's mistake, too little memory, a full disk."""

import errno
import re


class UserError(Exception):
    """One clear line: key or file, value seen, what is accepted, what to do. Exit code 2."""


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or XLA raised an error because memory is full."""
    told = "RESOURCE_EXHAUSTED" in str(error) and not disk_full(error)
    return isinstance(error, MemoryError) or told


def disk_full(error: BaseException) -> bool:
    """Whether Python or tensorstore raised an error because the disk is full."""
    return getattr(error, "errno", 0) == errno.ENOSPC or "os_error_code='28'" in str(error)


def in_one_line(error: object, most: int = 200) -> str:
    """What a library says, in an error or a line, cut short."""
    return " ".join(str(error).split())[:most]


def in_decimals(value: object) -> str:
    """A hint that gives the first fraction in ``value``, such as 4/255, as a decimal; "": none."""
    fraction = re.search(r"(?<![\w.])(\d+(?:\.\d*)?)/([1-9]\d*)\b", str(value))
    if fraction is None:
        return ""
    return f"; write {float(fraction[1]) / int(fraction[2]):.6f} for {fraction[0]}"
