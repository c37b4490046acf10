"""Everything rtseg raises on purpose.

    RtsegError                    one clear line that names the fix; exit code 2
    ├── ConfigError               a flag, a recipe or an argument that cannot be used
    ├── SourceError               a video, camera or directory that cannot be read
    │   └── StreamLostError       a live stream that is gone for good; exit code 3
    ├── SinkError                 an output that cannot be written
    ├── ModelError                a model file that is missing, truncated or breaks the contract
    ├── DataError                 a data set whose layout, sizes or label values are wrong
    ├── TrainingError             a run that went wrong: a loss without bounds, a full disk
    ├── EngineError               a runtime that failed to load or to run the model
    └── MissingDependencyError    a package or device this machine does not have

Wrong arrays passed to a function (shape, dtype) raise `ValueError`, as in NumPy.
Anything else that escapes is a bug and ends the command with exit code 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtseg.timing import RunReport


class RtsegError(Exception):
    """Base of all errors whose message is meant for the user.

    Attributes:
        report: where a run broke off, its `rtseg.RunReport` up to there; else None.
    """

    exit_code = 2
    report: RunReport | None = None


class ConfigError(RtsegError):
    """A flag, recipe or argument that cannot be used as given."""


class SourceError(RtsegError):
    """A source that cannot be opened or decoded."""


class StreamLostError(SourceError):
    """A live stream that was lost and did not come back."""

    exit_code = 3


class SinkError(RtsegError):
    """An output that cannot be opened or written."""


class ModelError(RtsegError):
    """A model file that is missing, truncated or without a usable contract."""


class DataError(RtsegError):
    """A data set with an unexpected layout, size or label value."""


class TrainingError(RtsegError):
    """A training run that cannot go on; its last good checkpoint is intact."""


class EngineError(RtsegError):
    """A runtime that cannot load or run this model on this machine."""


class MissingDependencyError(RtsegError):
    """A package, driver or device that is not present; names the extra that brings it."""

    @classmethod
    def for_extra(cls, package: str, extra: str, purpose: str) -> MissingDependencyError:
        """An error for a missing optional package: what it is for, and what installs it."""
        return cls(f"{purpose} needs {package}: pip install 'rtseg[{extra}]'")
