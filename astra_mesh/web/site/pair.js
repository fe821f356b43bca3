// Letting devices into the mesh, and shutting them out.

import { json } from "./api.js";
import { $, h, picture, s, say } from "./dom.js";

let timer = 0;

export function startPairing() {
  $("pair-open").onclick = () => act(async () => showCode(await json("/v1/pairing/open", {})));
  $("pair-close").onclick = () => act(async () => {
    showStatus(await json("/v1/pairing/close", {}));
    say($("pair-state"), "Closed: the code holds no more.");
  });
  $("pair-form").onsubmit = (event) => {
    event.preventDefault();
    act(join);
  };
}

/** The devices of the mesh as the peer lists them. */
export const refresh = () => act(async () => showStatus(await json("/v1/pairing")));

async function act(work) {
  say($("pair-problem"), "");
  try {
    await work();
  } catch (error) {
    say($("pair-problem"), error.message);
  }
}

async function join() {
  say($("pair-state"), "Looking for the other device…");
  $("pair-join").disabled = true;
  try {
    const at = $("pair-at").value.trim();
    const found = await json("/v1/pairing/join", { code: $("pair-code").value, at: at ? [at] : [] });
    $("pair-code").value = "";
    showStatus(found);
    say($("pair-state"), `Paired with ${found.paired}.`);
  } catch (error) {
    say($("pair-state"), "");
    throw error;
  } finally {
    $("pair-join").disabled = false;
  }
}

function showCode(found) {
  const { size, path } = found.qr;
  $("pair-qr").replaceChildren(picture(size, size, "QR code", `It holds the code ${found.code}`,
    s("rect", { width: size, height: size, fill: "#fff" }), s("path", { d: path, fill: "#000" })));
  say($("pair-shown"), found.code);
  say($("pair-state"), `On the other device: astra-mesh pair ${found.code}. It holds for two minutes.`);
  showStatus(found);
}

function showStatus({ devices, window: state }) {
  const open = Boolean(state?.open);
  const was = !$("pair-window").hidden;
  $("pair-window").hidden = !open;
  clearTimeout(timer);
  if (open) timer = setTimeout(refresh, 1000);
  else if (was) say($("pair-state"), ended(state));
  $("pair-devices").replaceChildren(...devices.map(item));
}

function ended(state) {
  if (state?.came.length) return `Paired with ${state.came[0]}.`;
  return state ? "Three wrong codes were given, so the window is closed." : "Nobody came in time; the code holds no more.";
}

function item(device) {
  if (device.self) return h("li", {}, `${device.name} (this one)`);
  const button = h("button", { type: "button", "aria-label": `Unpair ${device.name}` }, "Unpair");
  button.onclick = () => {
    if (!confirm(`Shut ${device.name} out of the mesh, on all devices?`)) return;
    act(async () => showStatus(await json("/v1/pairing/unpair", { id: device.id })));
  };
  return h("li", {}, `${device.name} `, button);
}
