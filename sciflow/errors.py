"""The exceptions that a user is meant to read."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake that the caller can mend: what was given, what is needed, what to do.

    The message is one line. The command line prints it without a traceback and exits with code 2.

    >>> raise UserError("events.csv: column 'pt' is missing; it has: eta, phi")
    Traceback (most recent call last):
    ...
    sciflow.errors.UserError: events.csv: column 'pt' is missing; it has: eta, phi
    """
