// Models of texts that this page has no form for, and where they are used.

const NAMED = 3; // models in the sentence

const FORMS = [
  ["classify", (names) => `${names} (labels of texts): by the command astra-mesh classify NAME --text TEXT.`],
  ["embed", (names) => `${names} (vectors of texts): by POST /v1/embeddings, or the command astra-mesh embed NAME TEXT.`],
];

/** One sentence for each kind of these models, "" where there is none. */
export function elsewhere(found) {
  const texts = found.filter((one) => one.here && one.family !== "vit" && !one.tasks.includes("generate"));
  const told = FORMS.map(([task, sentence]) => {
    // A classifier makes vectors, too; it is told of once.
    const names = texts.filter((one) => FORMS.find(([first]) => one.tasks.includes(first))?.[0] === task).map((one) => one.name);
    return names.length ? sentence(listed(names)) : "";
  });
  return told.filter(Boolean).join(" ");
}

function listed(names) {
  const more = names.length - NAMED;
  return more > 0 ? `${names.slice(0, NAMED).join(", ")} and ${more} more` : names.join(" and ").replace(/ and (?=.* and )/g, ", ");
}
