// Errors that other peers or people hear of; `code` as in astra_mesh/errors.py.

export class MeshError extends Error {
  constructor(message, code = "mesh") {
    super(message);
    this.name = new.target.name;
    this.code = code;
  }
}

/** A peer, or whoever speaks in its name, broke the rules of docs/protocol.md. */
export class ProtocolError extends MeshError {
  constructor(message) {
    super(message, "protocol");
  }
}

export class VersionMismatchError extends MeshError {
  constructor(message) {
    super(message, "version-mismatch");
  }
}

export class RefusedError extends MeshError {
  constructor(message) {
    super(message, "refused");
  }
}

export class PeerLostError extends MeshError {
  constructor(message) {
    super(message, "peer-lost");
  }
}

export class DeadlineError extends MeshError {
  constructor(message) {
    super(message, "deadline");
  }
}

/** The request was cancelled: nobody is told. */
export class CancelledError extends MeshError {
  constructor(message = "cancelled") {
    super(message, "cancelled");
  }
}

/** A model cannot be loaded or used here. */
export class ModelError extends MeshError {
  constructor(message, code = "model") {
    super(message, code);
  }
}

/** What a model needs did not arrive; it may the next time. */
export class FetchError extends ModelError {}

/** The host knows no such file, or no such model. */
export class UnknownFileError extends FetchError {}
