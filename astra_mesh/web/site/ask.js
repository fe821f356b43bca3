// A text to go on with, or a conversation; the answer as it comes.

import { ask, events } from "./api.js";
import { costLine } from "./cost.js";
import { $, choices, h, say } from "./dom.js";
import { elsewhere } from "./elsewhere.js";

const SHIPPED = "tiny-gpt2"; // goes on with the text that the empty field shows
const NO_TEXT = "Type a text first.";

let models = [];
let running = null; // AbortController of the question that is being answered
let messages = []; // of the conversation

export function startAsk() {
  $("ask-form").onsubmit = submit;
  // A browser shows what is wrong with a field only where the field is to be seen.
  $("ask-form").addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
  $("ask-text").oninvalid = (event) => {
    event.preventDefault(); // a browser's own words go after a moment, and some show none
    say($("ask-problem"), NO_TEXT);
    $("ask-text").focus();
  };
  $("ask-text").oninput = () => {
    const { value } = $("ask-text");
    $("ask-text").setCustomValidity(value && !value.trim() ? NO_TEXT : ""); // as `required`
    if ($("ask-problem").textContent === NO_TEXT) say($("ask-problem"), "");
  };
  $("ask-stop").onclick = () => running?.abort();
  $("ask-model").onchange = fit;
  $("ask-as").onchange = fit;
  $("ask-clear").onclick = () => {
    messages = [];
    $("answers").replaceChildren();
    fit();
    $("ask-text").focus();
  };
  $("ask-text").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask-form").requestSubmit();
  };
}

export function showModels(found) {
  const writers = found.filter((one) => one.here && one.tasks.includes("generate"));
  models = writers.filter((one) => !one.lacks); // without a tokenizer it takes token ids but no text
  const none = writers.length ? `${writers[0].name} has no ${writers[0].lacks}` : "no model here writes texts";
  choices($("ask-model"), models.length ? models.map((one) => [one.name, one.name]) : [["", none]], likeliest());
  const others = elsewhere(found);
  say($("ask-elsewhere"), others && `Not on this page: ${others}`);
  fit();
}

/** The model to begin with: one that is loaded, and rather the one that the example is for. */
function likeliest() {
  const rank = (one) => 2 * one.loaded + (one.name === SHIPPED);
  return [...models].sort((one, other) => rank(other) - rank(one))[0]?.name;
}

/** A model without a chat template holds no conversation, and its option says why. */
function fit() {
  const model = models.find((one) => one.name === $("ask-model").value);
  const chat = $("ask-as").querySelector("[value=chat]");
  chat.disabled = !model?.chat;
  chat.textContent = model && !model.chat ? "conversation: the model has no chat template" : "conversation";
  if (chat.disabled) $("ask-as").value = "text";
  $("ask-go").disabled = !model || running !== null;
  $("answers").hidden = $("answers").childElementCount === 0;
  $("ask-clear").hidden = messages.length === 0;
  $("ask-stop").hidden = running === null;
}

async function submit(event) {
  event.preventDefault();
  const text = $("ask-text").value;
  if (running || !text.trim()) return;
  const isChat = $("ask-as").value === "chat";
  say($("ask-problem"), "");
  const answer = h("p", { class: "said" }, h("b", {}, $("ask-model").value));
  if (isChat) $("answers").append(h("p", { class: "said mine" }, h("b", {}, "you"), text));
  else answer.append(h("span", { class: "given" }, text));
  const made = answer.appendChild(h("span", { class: "made" }));
  const waits = answer.appendChild(h("span", { class: "waits" }));
  $("answers").append(answer);
  if (isChat) $("ask-text").value = "";
  running = new AbortController();
  $("answers").setAttribute("aria-busy", "true"); // readers get the whole answer, not each token
  fit();
  try {
    const cost = await stream(isChat, text, made, waits, running.signal);
    answer.append(h("span", { class: "cost" }, `\n${costLine(cost)}`));
  } catch (error) {
    if (error.name === "AbortError") stopped(answer, made, isChat ? text : "");
    else failed(answer, made, error, isChat ? text : "");
  } finally {
    waits.remove();
    running = null;
    $("answers").setAttribute("aria-busy", "false");
    fit();
    scroll();
  }
}

/** What was said so far stays, also for the model: the conversation goes on from there. */
function stopped(answer, made, text) {
  answer.append(h("span", { class: "cost" }, "\nstopped"));
  if (text && made.textContent) messages = [...messages, { role: "user", content: text }, { role: "assistant", content: made.textContent }];
  if (document.activeElement === $("ask-stop")) $("ask-text").focus(); // the button goes
}

function failed(answer, made, error, text) {
  say($("ask-problem"), error.message);
  if (made.textContent) return;
  if (text) {
    answer.previousElementSibling?.remove();
    $("ask-text").value = text;
  }
  answer.remove();
}

/** What a field holds; what it held at first, where it is empty. */
const number = ({ value, defaultValue }) => Number(value || defaultValue);

/** The report of the mesh at the end. */
async function stream(isChat, text, made, waits, signal) {
  const most = number($("ask-tokens"));
  const body = {
    model: $("ask-model").value, stream: true, temperature: number($("ask-temperature")),
    max_tokens: most, x_astra_mesh: { use: $("ask-use").value },
  };
  if (isChat) body.messages = [...messages, { role: "user", content: text }];
  else body.prompt = text;
  let report;
  const heard = (comment) => say(waits, comment.startsWith("loading ") ? `\n${comment}…` : "");
  for await (const chunk of events(await ask(isChat ? "/v1/chat/completions" : "/v1/completions", body, signal), heard)) {
    const [choice] = chunk.choices;
    say(waits, "");
    made.textContent += (isChat ? choice?.delta.content : choice?.text) ?? "";
    report = chunk.x_astra_mesh?.[0] ?? report;
    scroll();
  }
  if (isChat) messages = [...body.messages, { role: "assistant", content: made.textContent }];
  return report;
}

function scroll() {
  $("answers").scrollTop = $("answers").scrollHeight;
}
