"""The user's mistakes: one line each, naming the place, what was expected and what was found."""

from pathlib import Path


def first_line(error: Exception) -> str:
    """What to say of a library's error in one line: its message's first, or else its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def one_line(said: object, most: int = 200) -> str:
    """All of what a library's error, or whatever else, says, on one line of at most so many characters."""
    return " ".join(str(said).split())[:most]


def named(error: BaseException) -> str:
    """A library's error in one line that begins with its kind."""
    said = one_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def cause(error: BaseException) -> str:
    """`named`, of what is beneath an error that a library wraps in advice of several lines."""
    return named(error.__cause__ or error)


class Terminated(BaseException):
    """SIGTERM, where a process of its own is to end as by Ctrl-C: what it says is kept is its text."""


class UserError(Exception):
    """A mistake in a config, data file, checkpoint or prompt that its owner can mend.

    Entry points print it as one line starting `error: ` and exit with status 2 (see `t3d.entry`).
    """

    def __init__(self, where: str | Path, expected: str, found: object) -> None:
        """Names `where` (file, key or record), what was `expected` there and what was `found`."""
        self.where, self.expected, self.found = str(where), expected, str(found)
        lines = f"{where}: expected {expected}, found {found}".splitlines()
        super().__init__(" ".join(line.strip() for line in lines if line.strip()))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """Pickles as its three parts: errors travel between processes."""
        return type(self), (self.where, self.expected, self.found)


class ConfigError(UserError):
    """A key or value of the configuration."""


class DataError(UserError):
    """A data file or one of its records."""


class CheckpointError(UserError):
    """A model folder or a training state."""


class DeviceFullError(UserError):
    """A full device, which one process of a launch can meet alone: each tells of its own."""
