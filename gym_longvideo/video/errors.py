"""What can go wrong with a video file, typed.

Every error is picklable, because ``AsyncVectorEnv`` and data loaders ship exceptions between
processes: attributes travel through ``__reduce__``.
"""

from __future__ import annotations

from typing import Any


class VideoError(Exception):
    """A video could not be opened or decoded.

    Attributes:
        path: The file (or the key of a procedural video).
        backend: The decoder that failed, "" if none was involved.
        reason: What happened and what to do about it.
    """

    def __init__(self, reason: str, *, path: str = "", backend: str = "") -> None:
        where = f"{path}: " if path else ""
        super().__init__(f"{where}{reason}" + (f" [{backend}]" if backend else ""))
        # After the call above, in which ImportError resets its own attribute ``path``.
        self.reason, self.path, self.backend = reason, path, backend

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.reason, self.path, self.backend)


def _rebuild(cls: type[VideoError], reason: str, path: str, backend: str) -> VideoError:
    return cls(reason, path=path, backend=backend)


class VideoNotFoundError(VideoError, FileNotFoundError):
    """No such file, a directory, or no permission to read it."""


class VideoOpenError(VideoError):
    """The file is not a readable video: empty, no index, unknown container."""


class NoVideoStreamError(VideoError):
    """The file holds no moving pictures: audio only, or a cover image."""


class UnsupportedCodecError(VideoError):
    """This backend cannot decode (or is known to get wrong) what the file holds."""


class VideoTruncatedError(VideoError):
    """The file ends well before its declared duration, and the caller asked to refuse that."""


class FrameDecodeError(VideoError):
    """A requested frame could not be decoded."""


class DecodeTimeoutError(VideoError):
    """Decoding took longer than the deadline of the call."""


class DecoderCrashError(VideoError):
    """The decoder process died (it ran apart, so this process goes on)."""


class VideoChangedError(VideoError):
    """The file is not the one that was opened: it was exchanged or written to meanwhile."""


class MachineError(VideoError):
    """The machine is short of something: memory, file descriptors, processes, disk.

    No file is to blame, so no task is ever skipped for it.
    """


class BackendUnavailableError(VideoError, ImportError):
    """The chosen backend is not installed; the message names the command that installs it."""
