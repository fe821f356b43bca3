// A pairing code from the QR that another device shows, where this browser reads QRs from its camera.

import { closeCamera, mayAsk, openCamera } from "./camera.js";
import { $, say } from "./dom.js";

const OURS = "astra-mesh:"; // how the text of such a QR begins
const LOOK_MS = 150;

let looking = 0; // counts scans: one that was ended finds nothing any more

/** Offers it if it can be done; `take` gets the text of the QR. */
export async function startScan(take) {
  if (!mayAsk() || !(await readsQrs())) return;
  $("pair-scan").hidden = false;
  $("pair-scan").onclick = () => scan(take);
  $("pair-scan-stop").onclick = () => {
    end();
    $("pair-scan").focus();
  };
  document.addEventListener("visibilitychange", () => document.hidden && end());
}

async function readsQrs() {
  try {
    return (await BarcodeDetector.getSupportedFormats()).includes("qr_code");
  } catch {
    return false; // this browser has none, or one without its system's help
  }
}

async function scan(take) {
  const mine = ++looking;
  const video = $("pair-video");
  say($("pair-problem"), "");
  try {
    await openCamera(video);
    if (mine !== looking) return closeCamera(video);
    $("pair-live").hidden = false;
    $("pair-scan-stop").focus();
    const text = await found(video, () => mine === looking);
    if (text === null) return;
    end();
    take(text);
  } catch (error) {
    if (mine !== looking) return;
    end();
    say($("pair-problem"), error.message);
  }
}

/** The text of the first QR of a mesh that the camera sees; null once `wanted` says no. */
async function found(video, wanted) {
  const detector = new BarcodeDetector({ formats: ["qr_code"] });
  while (wanted()) {
    const texts = (await detector.detect(video)).map((one) => one.rawValue);
    if (!wanted()) break;
    const ours = texts.find((one) => one.startsWith(OURS));
    if (ours !== undefined) return ours;
    say($("pair-state"), texts.length ? "This QR is none that lets a device in." : "Hold it before the camera…");
    await new Promise((go) => setTimeout(go, LOOK_MS));
  }
  return null;
}

function end() {
  looking += 1;
  closeCamera($("pair-video"));
  $("pair-live").hidden = true;
  say($("pair-state"), "");
}
