"""Faults of rollout servers. Nothing that a server at fault has said is trained on."""

from __future__ import annotations


class ServerError(Exception):
    """A rollout server did not do what was asked."""


class Unreachable(ServerError):
    """No whole answer: down, hung, overloaded or cut off. Another may do, or this one later."""


class Refused(ServerError):
    """The server answered that it will not do this, and would say so again.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Mismatch(ServerError):
    """The server runs other weights, another model, or says other things than were asked for."""
