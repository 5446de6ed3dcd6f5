"""What a run may end in: a user's mistake, or too little memory."""


class UserError(Exception):
    """One clear line: key or file, value seen, what is accepted, what to do. Exit code 2."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python's or of XLA's, means that."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
