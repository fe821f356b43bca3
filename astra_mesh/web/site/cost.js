// What an answer cost, in a line.

import { bytes, lossOf, seconds } from "./dom.js";

const CARED_S = 0.05; // that loading or lost devices took and a person may care for

export function costLine(report) {
  if (!report) return "";
  const parts = [];
  const peers = report.plan.shards.filter((one) => one.stop > one.start).length;
  parts.push(peers === 1 ? "one device" : `${peers} devices, ${report.plan.bits_per_token} bits per token and block`);
  if (report.actual_s !== undefined) parts.push(`predicted ${seconds(report.predicted_s)}, took ${seconds(report.actual_s)}${afterLost(report)}`);
  if (report.loading_s >= CARED_S) parts.push(`before that ${seconds(report.loading_s)} until the model was loaded`);
  if (peers > 1) parts.push(`one device would take ${seconds(report.predicted_solo_s)}`);
  const sent = (report.peers ?? []).flatMap((one) => Object.values(one.sent_bytes)).reduce((sum, size) => sum + size, 0);
  if (sent) parts.push(`${bytes(sent)} between devices`);
  const waited = Math.max(0, ...(report.peers ?? []).map((one) => one.wait_s));
  if (peers > 1 && report.peers) parts.push(`waited ${seconds(waited)}`);
  if (report.expected_cost) parts.push(`expected loss of ${report.expected_cost.measure}: ${lossOf(report.expected_cost.measure, report.expected_cost.loss)}`);
  const plan = report.plan.reason ? ` Plan: ${report.plan.reason}.` : "";
  return `${parts.join("; ")}.${plan}${report.notes?.length ? ` ${report.notes.join(". ")}.` : ""}`;
}

/** What devices cost that were lost before the answer's plan was made. */
export function afterLost(report) {
  return report.lost_s >= CARED_S ? ` after ${seconds(report.lost_s)} with devices that were lost` : "";
}
