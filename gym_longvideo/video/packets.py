"""Packets of streams, read over damage."""

from __future__ import annotations

from collections.abc import Iterator

import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gym_longvideo.video.border import pass_on_machine_fault

# Demuxing goes on after this many read errors (damaged files recover at the next packet).
_MAX_READ_ERRORS = 64


def timestamp(packet: Packet) -> int | None:
    """Return when a packet's frame is shown, in ticks (AVI gives only decode times)."""
    return packet.dts if packet.pts is None else packet.pts


def demux(container: InputContainer, *streams: VideoStream) -> Iterator[Packet]:
    """Yield packets of the streams from where the container stands, riding over read errors."""
    for _ in range(_MAX_READ_ERRORS):
        try:
            for packet in container.demux(*streams):
                if packet.size:  # the last one is empty: a flush signal
                    yield packet
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            pass_on_machine_fault(error)
