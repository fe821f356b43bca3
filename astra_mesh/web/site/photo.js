// A picture from a file, the clipboard or the camera, and what the model says it shows.

import { json } from "./api.js";
import { closeCamera, mayAsk, openCamera } from "./camera.js";
import { costLine } from "./cost.js";
import { isHere } from "./device.js";
import { $, choices, h, percent, say } from "./dom.js";

// Photos of phones are larger than a Wi-Fi carries at once; models look at a few hundred pixels a side.
const LARGE_BYTES = 3e6;
const MOST_BYTES = 10 * 2 ** 20; // that a peer takes
const SIDE = 1024;

let count = 0; // of pictures; the answer to an older one is dropped
let models = []; // that label pictures
let last = null;

export function startPhoto() {
  $("photo-choose").onclick = () => $("photo-file").click();
  $("photo-camera").onclick = startCamera;
  $("photo-snap").onclick = snap;
  $("photo-cancel").onclick = stopCamera;
  for (const id of ["photo-file", "photo-shot"]) {
    $(id).onchange = (event) => {
      if (event.target.files[0]) label(event.target.files[0]);
      event.target.value = ""; // the same file again is news too
    };
  }
  $("photo-model").onchange = () => last && label(last);
  $("photo-use").onchange = () => last && label(last);
  const section = $("photo");
  const over = (is) => section.classList.toggle("over", is);
  section.ondragover = (event) => {
    event.preventDefault();
    over(true);
  };
  section.ondragleave = (event) => over(section.contains(event.relatedTarget));
  section.ondrop = (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files[0]) label(event.dataTransfer.files[0]);
  };
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) label(file);
  });
}

export function showModels(found) {
  const labellers = found.filter((one) => one.here && one.family === "vit" && one.tasks.includes("classify"));
  models = labellers.filter((one) => !one.lacks); // without what says how to read pictures it takes none
  say($("photo-none"), labellers.length ? `${labellers[0].name} has no ${labellers[0].lacks}, so it takes no pictures.` : "No model here labels pictures.");
  choices($("photo-model"), models.map((one) => [one.name, one.name]));
  $("photo-none").hidden = models.length > 0;
  $("photo-ask").hidden = models.length === 0;
}

async function label(file) {
  const mine = ++count;
  last = file;
  say($("photo-problem"), "");
  say($("photo-cost"), models.find((one) => one.name === $("photo-model").value)?.loaded ? "looking…" : "looking, once the model is loaded…");
  $("labels").replaceChildren();
  const preview = $("photo-preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  fit();
  try {
    const found = await asked(await sendable(file));
    if (mine !== count) return;
    $("labels").replaceChildren(...found.data.map((one) => h("li", {},
      h("span", {}, one.label), h("span", {}, percent(one.score)),
      h("meter", { value: one.score, "aria-hidden": "true" }))));
    say($("photo-cost"), costLine(found.x_astra_mesh[0]));
  } catch (error) {
    if (mine === count) failed(error.message);
  }
}

/** Nothing of the picture before stays beside an error, nor comes later. */
function failed(why) {
  count += 1;
  last = null;
  $("labels").replaceChildren();
  $("photo-preview").hidden = true;
  fit();
  say($("photo-cost"), "");
  say($("photo-problem"), why);
}

/** Where nothing is to be seen yet, there is room to drop a picture. */
function fit() {
  $("photo-empty").hidden = !$("photo-preview").hidden || !$("photo-live").hidden;
}

async function asked(file) {
  const use = $("photo-use").value;
  const model = $("photo-model").value;
  if (use === "auto") return json(`/v1/images/classify?model=${encodeURIComponent(model)}&top=5`, file);
  return json("/v1/images/classify", { model, image: await dataUrl(file), top: 5, x_astra_mesh: { use } });
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file cannot be read; choose another."));
    reader.readAsDataURL(file);
  });
}

/** The file as it is; made smaller if it is large, or of a kind that only this browser may know. */
async function sendable(file) {
  const known = ["image/jpeg", "image/png", "image/webp"].includes(file.type);
  if (known && file.size <= (isHere() ? MOST_BYTES : LARGE_BYTES)) return file; // here nothing is sent anywhere: it stays as it is
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This browser cannot read the file as a picture; choose a JPEG or PNG file, or a smaller one.");
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  return drawn(bitmap, bitmap.width * scale, bitmap.height * scale);
}

function drawn(source, width, height) {
  const canvas = h("canvas", { width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

// --- the camera -------------------------------------------------------------------------------------

/** Where a page gets no camera, the browser's own takes the photo. */
async function startCamera() {
  say($("photo-problem"), "");
  if (!mayAsk()) return $("photo-shot").click();
  try {
    await openCamera($("photo-video"));
  } catch (error) {
    return failed(error.message);
  }
  $("photo-live").hidden = false;
  fit();
  $("photo-snap").focus();
}

async function snap() {
  const video = $("photo-video");
  if (!video.videoWidth) return; // nothing came from the camera yet
  const file = await drawn(video, video.videoWidth, video.videoHeight);
  stopCamera();
  label(file);
}

function stopCamera() {
  closeCamera($("photo-video"));
  $("photo-live").hidden = true;
  fit();
  $("photo-camera").focus();
}
