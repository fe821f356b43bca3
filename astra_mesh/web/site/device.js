// What this browser can tell of its device, and how the device is called.

const DEVICE_KEY = "astra-mesh-device"; // opaque id of this browser's machine
const NAME_KEY = "astra-mesh-device-name"; // that a person gave
const TAG = 4; // digits of the id in a name: two phones of one kind are two names
const SYSTEMS = [["iPhone", "iPhone"], ["iPad", "iPad"], ["Android", "Android device"], ["CrOS", "Chromebook"], ["Mac", "Mac"], ["Windows", "Windows computer"], ["Linux", "Linux computer"]];
// Browsers name those that they descend from, too: the first that fits.
const BROWSERS = [[/EdgA?\/|EdgiOS/, "Edge"], [/SamsungBrowser/, "Samsung Internet"], [/OPR\//, "Opera"], [/Firefox|FxiOS/, "Firefox"], [/Chrome|CriOS/, "Chrome"], [/Safari/, "Safari"]];
const MODEL = /Android [^;)]*; (?!(?:K|Mobile|Tablet|wv)[;)])([^;)]+?)(?: Build\/[^;)]*)?[;)]/; // some browsers hide it

const HERE = ["localhost", "127.0.0.1", "[::1]"];

/** Whether the peer that serves this page runs on the device that shows it. */
export const isHere = () => HERE.includes(location.hostname);

const systemOf = (agent) => SYSTEMS.find(([sign]) => agent.includes(sign))?.[1] ?? "a device";

/** A name by kind, "Chrome on Pixel 7" or "Safari on iPhone": as much as a browser tells. */
export function kindOf(agent) {
  const browser = BROWSERS.find(([sign]) => sign.test(agent))?.[1] ?? "browser";
  return `${browser} on ${agent.match(MODEL)?.[1] ?? systemOf(agent)}`;
}

function hostId() {
  let host = localStorage.getItem(DEVICE_KEY);
  if (!host) {
    host = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem(DEVICE_KEY, host);
  }
  return host;
}

const systemName = () => `browser on ${systemOf(navigator.userAgent)}`;

/** What a tab says about its device. */
export const device = () => ({ host: hostId(), cores: navigator.hardwareConcurrency || 1, memory: navigator.deviceMemory ?? 0, system: systemName() });

const ownName = () => `${kindOf(navigator.userAgent)} ${hostId().slice(0, TAG)}`;

/** The name that a person gave, or else one of its own; the same each time. */
export function deviceName() {
  const given = localStorage.getItem(NAME_KEY);
  return given && given !== systemName() ? given : ownName(); // that was kept as if it had been given
}

/** Keep a name that a person gave; "" gives it its own again. The name that it has now. */
export function giveName(text) {
  const given = text.trim();
  if (given && given !== ownName()) localStorage.setItem(NAME_KEY, given);
  else localStorage.removeItem(NAME_KEY);
  return deviceName();
}
