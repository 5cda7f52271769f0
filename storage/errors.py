"""What can go wrong with a store, in words of our own: the drivers' classes stop at this package."""


class StorageError(Exception):
    """Everything a store raises."""


class StorageUnavailable(StorageError):
    """The store did not answer, not in time, or is not in a state to: try again later. The cause is chained.

    Raised by a write, it leaves open whether the write took place; every write here may be repeated.
    """


class StorageRefused(StorageError):
    """The store answered and will not: wrong credentials, no such bucket, no right. Trying again does not help."""


class ObjectMissing(StorageError):
    """There is no object of that key."""


class UploadMissing(StorageError):
    """There is no such multipart upload: aborted, expired, or never begun."""


class PartsMismatch(StorageError):
    """The parts named are not those that are stored, or one but the last is under `PART_BYTES`."""


class RangeInvalid(StorageError):
    """The range begins at or behind the object's end."""


class SignatureInvalid(StorageError):
    """A signed URL that was altered, has expired, or was signed by somebody else."""
