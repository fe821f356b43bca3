// Asking the peer that serves this page. Every error is a sentence in `error.message`.

const KEY = "astra-mesh-token";

/** The token comes with the address (#token=...), which browsers keep to themselves, and stays in this browser. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  setToken(given);
  history.replaceState(null, "", location.pathname);
}

/** What a person typed, or the token in the address that was pasted in its place. */
export function typedToken(text) {
  const [, hash] = text.trim().split(/^https?:[^#]*#/);
  return new URLSearchParams(hash ?? "").get("token") ?? text.trim();
}

export function setToken(token) {
  localStorage.setItem(KEY, token);
}

export const token = () => localStorage.getItem(KEY);

/** A WebSocket to the peer. Browsers give it no headers, so the token is one of its protocols. */
export function socket(path, protocol, known = token()) {
  const protocols = known ? [protocol, `bearer.${base64url(known)}`] : [protocol];
  return new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`, protocols);
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export class Refused extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const GONE = "The peer does not answer: it has stopped, or this device left its network.";
const gone = () => new Refused(GONE, "gone", 0);

let patience = new AbortController(); // of all that is asked now

/** The peer says nothing any more: whatever waits for it ends with this sentence. */
export function giveUp() {
  patience.abort();
  patience = new AbortController();
  return GONE;
}

/** Aborted with the first of two. */
function either(...signals) {
  if (AbortSignal.any) return AbortSignal.any(signals); // Safari since 17.4
  const both = new AbortController();
  for (const one of signals) {
    if (one.aborted) both.abort(one.reason);
    one.addEventListener("abort", () => both.abort(one.reason), { once: true });
  }
  return both.signal;
}

/** The answer to a request; `body` is an object (sent as JSON) or a Blob. */
export async function ask(path, body, signal) {
  const headers = {};
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const isBlob = body instanceof Blob;
  if (body && !isBlob) headers["Content-Type"] = "application/json";
  if (isBlob) headers["Content-Type"] = body.type;
  const data = body && !isBlob ? JSON.stringify(body) : body;
  const over = patience.signal;
  const until = signal ? either(signal, over) : over;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: data, signal: until });
  } catch (error) {
    throw error.name === "AbortError" && !over.aborted ? error : gone();
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: {} }));
  throw new Refused(error?.message ?? `the peer answers with status ${response.status}`, error?.code, response.status);
}

export async function json(path, body, signal) {
  const over = patience.signal;
  const response = await ask(path, body, signal);
  return response.json().catch((error) => {
    throw over.aborted ? gone() : error;
  });
}

const cutOff = () => new Refused("The answer was cut off: the peer went away.", "gone", 0);

/** The JSON values of a stream of server-sent events, until [DONE]; `heard` gets the comments between them. */
export async function* events(response, heard) {
  const over = patience.signal;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (over.aborted) throw gone();
      throw error.name === "AbortError" ? error : cutOff(); // a browser says "network error"
    });
    if (done) throw cutOff();
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith(": ")) heard?.(line.slice(2)); // it keeps the connection alive
      if (!line.startsWith("data: ")) continue;
      const found = JSON.parse(line.slice(6));
      if (found.error) throw new Refused(found.error.message, found.error.code, 200);
      yield found;
    }
  }
}
