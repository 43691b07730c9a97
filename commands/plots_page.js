// Lays out what DVC writes into the page: each plot calls vegaEmbed('#id', spec); an image is a box of its own.
const embed = vegaEmbed;
const plots = [];
vegaEmbed = (id, spec) => plots.push({ id, spec });
const stem = (path) => path.split("/").pop().split(".")[0];
const place = ({ id }) => {
  const ids = ORDER.map((path) => "#" + path.replace(/[/.]/g, "_"));
  return ids.includes(id) ? ids.indexOf(id) : ids.length;
};

// A revision has the same dashes and shapes in all plots, whatever another lacks; the head explains them, once.
const styleRevisions = (node, revisions) => {
  if (!node || typeof node !== "object") return;
  for (const channel of ["strokeDash", "shape", "yOffset"]) {
    if (node[channel]?.field !== "rev") continue;
    node[channel].scale = { ...node[channel].scale, domain: revisions };
    if (channel !== "yOffset") node[channel].legend = null;
  }
  Object.values(node).forEach((child) => styleRevisions(child, revisions));
};

const explainRevisions = (head, revisions) => {
  head.append(revisions.length > 1 ? "Revisions:" : `Revision: ${revisions[0] ?? "none"}`);
  if (revisions.length === 1) return;
  revisions.forEach((revision, number) => {
    const dash = DASHES[number % DASHES.length];
    const key = document.createElement("span");
    key.innerHTML =
      `<svg width="56" height="14" fill="none" stroke="black" stroke-width="1.5"><path d="M0 7h36" stroke-dasharray="${dash}"/>` +
      `<path transform="translate(48 7)" d="${SHAPES[number % SHAPES.length]}"/></svg>`;
    key.append(revision);
    head.append(" ", key);
  });
};

addEventListener("DOMContentLoaded", () => {
  const main = document.querySelector("main");
  for (const { id } of plots) document.getElementById(id.slice(1)).remove();
  const drawn = plots.filter(({ spec }) => spec.data?.values?.length).sort((one, other) => place(one) - place(other));
  const revisions = [...new Set(drawn.flatMap(({ spec }) => spec.data.values.map(({ rev }) => rev)))];
  explainRevisions(document.querySelector("#revisions"), revisions);
  for (const { spec } of drawn) {
    const section = main.appendChild(document.createElement("section"));
    section.appendChild(document.createElement("h2")).textContent = spec.title?.text ?? spec.title ?? "";
    delete spec.title; // a heading breaks its lines, which a title in a plot does not
    styleRevisions(spec, revisions);
    if (!spec.facet && !spec.encoding?.column && !spec.encoding?.row)
      Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
    spec.config = { legend: { orient: "bottom", columns: 3, labelLimit: 300 }, ...spec.config };
    const actions = { export: true, source: false, compiled: false, editor: false };
    embed(section.appendChild(document.createElement("div")), spec, { renderer: "svg", actions });
  }
  // A picture named like a table shows the same, for where no page draws: GitHub, for one.
  for (const box of document.querySelectorAll("body > div"))
    if (ORDER.map(stem).includes(stem(box.querySelector("p")?.textContent ?? ""))) box.remove();
});
