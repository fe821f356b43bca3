"""The exception tree: every error says what happened, to whom, and what to do.

Each class has a stable ``code``. Codes cross the wire (:class:`astra_mesh.wire.messages.Fail`), so
that a caller on another machine gets the same class back through :func:`error_from_code`.
"""

from __future__ import annotations

from typing import ClassVar


class AstraMeshError(Exception):
    """Base of all errors that astra_mesh raises on purpose."""

    code: ClassVar[str] = "error"

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0]) if self.args else self.code


class InputError(AstraMeshError):
    """The caller's input cannot be used as it is."""

    code = "bad-input"


class EmptyPromptError(InputError):
    """A prompt without any token."""

    code = "empty-prompt"


class PromptTooLongError(InputError):
    """More tokens than the model's context holds."""

    code = "prompt-too-long"


class BadImageError(InputError):
    """Bytes that are no image, or an image that is too large."""

    code = "bad-image"


class WrongTaskError(InputError):
    """The model does not do what was asked of it (say, text asked of an image classifier)."""

    code = "wrong-task"


class CodecError(InputError):
    """Codes that are not there were named."""

    code = "bad-codec"


class RateError(InputError):
    """The codes have no such rate."""

    code = "bad-rate"


class ModelError(AstraMeshError):
    """A model bundle cannot be used."""

    code = "model"


class UnknownModelError(ModelError):
    """No model of that name on this device."""

    code = "unknown-model"


class UnsupportedModelError(ModelError):
    """A model of a family or variant that astra_mesh does not run."""

    code = "unsupported-model"


class BadBundleError(ModelError):
    """A file of the bundle is missing, truncated, altered or hostile."""

    code = "bad-bundle"


class CodebookError(ModelError):
    """A codebook is unreadable, or belongs to another model."""

    code = "codebook"


class CalibrationError(ModelError):
    """Calibration data that cannot be used to fit a codebook (too little, wrong kind)."""

    code = "calibration"


class MeshError(AstraMeshError):
    """Something between peers went wrong."""

    code = "mesh"


class ProtocolError(MeshError):
    """Bytes or a message that the protocol does not allow here."""

    code = "protocol"


class VersionMismatchError(MeshError):
    """The two ends speak different protocol versions."""

    code = "version-mismatch"


class RefusedError(MeshError):
    """A peer refused a link or a request, with a named reason."""

    code = "refused"


class PeerLostError(MeshError):
    """A peer that takes part in the request went away.

    ``happened`` is the sentence without what to do, for an answer that came all the same; "": the
    sentence says no more than that.
    """

    code = "peer-lost"
    happened: str = ""


class NoPeerError(MeshError):
    """Nobody answers at the address given."""

    code = "no-peer"


class PortInUseError(MeshError):
    """The port that the peer should listen on is taken."""

    code = "port-in-use"


class NotPairedError(MeshError):
    """The device at the other end is not paired with this one, or not any more.

    ``ended_by`` is the id of that device where this one knows it, and it ended the connection.
    """

    code = "not-paired"
    ended_by: str = ""


class PairingError(MeshError):
    """Two devices could not be paired."""

    code = "pairing"


class IdentityError(MeshError):
    """The peer's own key and certificate cannot be read or written."""

    code = "identity"


class BusyError(MeshError):
    """The peer has as many requests as it takes; try again in ``retry_s`` seconds."""

    code = "busy"
    retry_s: float = 1.0


class DeadlineError(MeshError):
    """Something did not happen before its deadline."""

    code = "deadline"


class CancelledRequestError(MeshError):
    """The request was cancelled."""

    code = "cancelled"


class InternalError(AstraMeshError):
    """A fault of the program itself, reported by a peer."""

    code = "internal"


def _all_errors(root: type[AstraMeshError]) -> dict[str, type[AstraMeshError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_all_errors(child))
    return found


def error_from_code(code: str, message: str) -> AstraMeshError:
    """The exception for a code received from a peer; an unknown code gives the base class."""
    return _all_errors(AstraMeshError).get(code, AstraMeshError)(message)
