"""The one exception a user's mistake ends in."""


class UserError(Exception):
    """One clear line: the key or file, the value seen, what is accepted, what to do (exit code 2)."""
