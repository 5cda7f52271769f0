"""What can go wrong with the database, in words of our own: the driver's classes stop at this package."""


class DatabaseUnavailable(Exception):
    """The database did not answer, not in time, or is not in a state to: try again later. The cause is chained.

    Raised by a transaction's end, it leaves open whether the commit took place.
    """


class MigrationError(Exception):
    """The migrations cannot be applied as they stand; the text says which file, which line, and why."""
