// Where a tab computes its models, in words.

/** Why ready models are on the processor, where it is the same for all that are; else "". */
export function sharedReason(models) {
  const reasons = new Set(models.filter((one) => one.state === "ready" && one.place !== "webgpu").map((one) => one.why));
  return reasons.size === 1 ? [...reasons][0] : "";
}

/** Where a ready model is computed, and why, unless that is said for all. */
export function placed({ place, why }, shared) {
  if (place === "webgpu") return "on the GPU";
  return why && why !== shared ? `on the processor (${why})` : "on the processor";
}
