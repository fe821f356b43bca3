"""The first frame of the other end, checked: is this an end that we can talk to? Without I/O."""

from __future__ import annotations

from astra_mesh.errors import MeshError, ProtocolError, RefusedError, VersionMismatchError
from astra_mesh.wire.codec import decode, hello_version, sanitise
from astra_mesh.wire.messages import (
    PROTOCOL_VERSION,
    REASONS,
    Goodbye,
    Hello,
    LinkRefused,
    PeerId,
    Reason,
    Role,
)


class LinkRefusal(Exception):
    """The link is to be refused: a decision, not an error of the program.

    Args:
        reason: Told to the other end, with ``text``.
        text: The other end's reader is meant by "this device".
        error: What this end reports.
    """

    def __init__(self, reason: Reason, text: str, error: MeshError) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.error = error


def check_first(
    frame: bytes | bytearray | memoryview,
    own: Hello,
    expected: PeerId | None,
    proven: PeerId | None = None,
    via: PeerId | None = None,
) -> Hello | LinkRefused | Goodbye:
    """The first message of the other end.

    Args:
        frame: It.
        own: The hello of this end.
        expected: Who should be there; None: anybody.
        proven: Who is there, as its certificate says; None on links without TLS (tests).
        via: Of a tab: the peer through which it comes, likewise.

    Raises:
        LinkRefusal: A hello that this end cannot accept.
        ProtocolError: No hello at all.
    """
    version = hello_version(frame)
    if version is not None and version != PROTOCOL_VERSION:
        raise _version_refusal(PROTOCOL_VERSION, version)
    message = decode(frame)
    if isinstance(message, LinkRefused | Goodbye):
        return message
    if not isinstance(message, Hello):
        raise ProtocolError(f"{type(message).__name__} before the hello")
    if message.peer == own.peer:
        error = RefusedError("this address leads back to this peer itself")
        raise LinkRefusal(Reason.SELF, "", error)
    if proven is not None and message.peer != proven:
        text = f"the hello says {message.peer[:8]}, the certificate {proven[:8]}"
        raise LinkRefusal(Reason.WRONG_PEER, text, RefusedError(text))
    if proven is not None and message.via != (via or ""):
        through = message.via[:8] or "nobody"
        text = f"the hello says that it comes through {through}, which is not so"
        raise LinkRefusal(Reason.WRONG_PEER, text, RefusedError(text))
    if message.via and message.role is Role.CLIENT:
        raise ProtocolError("a client that comes through a peer")
    if expected is not None and message.peer != expected:
        text = f"peer {message.peer[:8]} answers instead of {expected[:8]}"
        raise LinkRefusal(Reason.WRONG_PEER, text, RefusedError(text))
    if message.role is Role.CLIENT and own.role is Role.CLIENT:
        raise ProtocolError("a link between two clients")
    return message


def _version_refusal(ours: int, theirs: int) -> LinkRefusal:
    """Both versions, and which end to update, from the point of view of each reader."""

    def sentence(here: int, there: int) -> str:
        side = "this device" if here < there else "the other device"
        return (
            f"this device speaks version {here} of the protocol, the other device {there}: "
            f"update {side} to a release with version {max(here, there)}"
        )

    error = VersionMismatchError(sentence(ours, theirs))
    return LinkRefusal(Reason.PROTOCOL_VERSION, sentence(theirs, ours), error)


def refusal_error(message: LinkRefused, who: str) -> MeshError:
    """What this end reports when it is refused."""
    text = sanitise(message.text)
    if message.reason is Reason.PROTOCOL_VERSION:
        return VersionMismatchError(text or REASONS[message.reason])
    return RefusedError(f"{who} refused the link: {explain(message.reason, text)}")


def explain(reason: Reason, text: str) -> str:
    """The sentence of a reason, with what was added to it."""
    return f"{REASONS[reason]} ({text})" if text else REASONS[reason]
