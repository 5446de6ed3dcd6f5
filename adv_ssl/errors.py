"""The one exception a user's mistake ends in."""


class UserError(Exception):
    """One clear line: key or file, value seen, what is accepted, what to do. Exit code 2."""
