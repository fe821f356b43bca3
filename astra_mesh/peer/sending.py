"""Sending where the link may be over by now."""

from __future__ import annotations

import logging

from astra_mesh.errors import MeshError, ProtocolError
from astra_mesh.mesh.link import Link
from astra_mesh.wire.codec import AnyMessage

log = logging.getLogger(__name__)


def send_if_open(link: Link, message: AnyMessage) -> None:
    """Queue a message; that the link is over is no error here, its end is reported elsewhere."""
    try:
        link.send(message)
    except MeshError as error:
        level = logging.WARNING if isinstance(error, ProtocolError) else logging.DEBUG
        kind = type(message).__name__
        log.log(level, "%s is not sent to %s: %s", kind, link.address, error.message)
