// This device's camera in a <video>. A browser shows it to pages from this machine or by HTTPS only.

/** Whether a page may ask for it here. */
export const mayAsk = () => Boolean(navigator.mediaDevices);

/** Starts it; an error is a sentence for the person. */
export async function openCamera(video) {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(error.name === "NotAllowedError" ? "The browser may not use the camera; allow it beside the address." : "No camera was found on this device.");
  }
  await video.play();
}

export function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
}
