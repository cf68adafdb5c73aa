"use strict";

// A minus B: shares of the true class, in percentage points
function differenceOf(first, second) {
  const shares = (counts) => counts.map((row) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    return row.map((count) => (total ? (100 * count) / total : NaN));
  });
  const [a, b] = [shares(first), shares(second)];
  return a.map((row, i) => row.map((value, j) => value - b[i][j]));
}

function element(kind, text, parent) {
  const made = document.createElement(kind);
  made.textContent = text; // never HTML: names come from folders
  parent.append(made);
  return made;
}

const signed = (points) => (points > 0 ? "+" : points < 0 ? "\u2212" : "") + Math.abs(points).toFixed(1);

function drawMatrix(names, values, place) {
  const table = element("table", "", place);
  const head = element("tr", "", element("thead", "", table));
  const columns = table.insertBefore(document.createElement("colgroup"), table.firstChild);
  element("col", "", columns).className = "names";
  element("td", "", head);
  for (const name of names) {
    element("col", "", columns);
    const column = element("th", "", head);
    column.scope = "col";
    element("span", name, column);
  }
  const body = element("tbody", "", table);
  values.forEach((row, i) => {
    const line = element("tr", "", body);
    element("th", names[i], line).scope = "row";
    for (const points of row) {
      const cell = element("td", Number.isNaN(points) ? "\u2013" : signed(points), line);
      if (Number.isNaN(points)) cell.className = "empty";
      else cell.style.background = `rgba(${points > 0 ? "43, 108, 176" : "196, 78, 40"}, ${Math.min(Math.abs(points) / 60, 0.75)})`;
    }
  });
}

function drawList(names, values, place) {
  const cells = values.flatMap((row, i) => row.map((points, j) => ({ points, i, j })));
  const known = cells.filter((cell) => Math.abs(cell.points) > 0);
  known.sort((one, other) => Math.abs(other.points) - Math.abs(one.points));
  const list = element("ol", "", place);
  for (const { points, i, j } of known.slice(0, 20)) {
    const what = i === j ? "correctly" : `as ${names[j]}`;
    element("li", `${signed(points)} points: ${names[i]} predicted ${what}`, list);
  }
}

for (const part of document.querySelectorAll(".difference")) {
  const data = JSON.parse(part.querySelector("script").textContent);
  const [a, b] = [part.querySelector(".a"), part.querySelector(".b")];
  const draw = () => {
    const [first, second] = [data.sides[a.value], data.sides[b.value]];
    const place = part.querySelector(".shown");
    place.replaceChildren();
    part.querySelector("figcaption").textContent = `${first.label} minus ${second.label}`;
    (data.list ? drawList : drawMatrix)(data.names, differenceOf(first.counts, second.counts), place);
  };
  a.addEventListener("change", draw);
  b.addEventListener("change", draw);
  draw();
}

// the first number of a cell, or its text
function valueOf(cell) {
  const text = cell.textContent.trim().replaceAll("\u2212", "-").replaceAll(",", "");
  const number = /^[-+]?\d*\.?\d+/.exec(text);
  return number ? Number(number[0]) : text;
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return one.localeCompare(other, undefined, { numeric: true });
}

const bodyRows = (table) => [...table.tBodies[0].rows];
const isFixed = (row) => row.classList.contains("baseline") || row.classList.contains("reference");

function sortBy(table, column, button) {
  const head = button.parentElement;
  const down = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && column === 0);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "ascending" : "descending");
  const rows = bodyRows(table).filter((row) => !isFixed(row));
  rows.sort((a, b) => (down ? 1 : -1) * compare(valueOf(a.cells[column]), valueOf(b.cells[column])));
  table.tBodies[0].prepend(...rows);
  const most = Number(table.dataset.rows); // the first rows of the new order are the ones shown
  rows.forEach((row, place) => row.classList.toggle("more", place >= most));
}

// mark cells that a spreadsheet would compute as a formula
const quoted = (text) => {
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text.split(" ")[0])) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
};

function saveCsv(table) {
  const lines = [table.tHead.rows[0], ...bodyRows(table).filter((row) => !row.classList.contains("hidden"))].map((row) =>
    [...row.cells].map((cell) => quoted(cell.textContent.replace(/\s+/g, " ").trim())).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", lines.join("\n"), "\n"], { type: "text/csv" }));
  link.download = `${table.id || "table"}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

const FILTERED = 6; // tables with fewer rows have no filter

for (const table of document.querySelectorAll("table.data")) {
  const place = table.closest(".scroll");
  const tools = document.createElement("div");
  tools.className = "tools";
  place.before(tools);
  const shown = bodyRows(table).filter((row) => !isFixed(row) && !row.classList.contains("more")).length;
  table.dataset.rows = shown;
  const late = bodyRows(table).filter((row) => row.classList.contains("more")).length;
  if (bodyRows(table).length >= FILTERED) {
    const filter = element("input", "", tools);
    filter.type = "search";
    filter.placeholder = "filter rows";
    filter.setAttribute("aria-label", "filter rows");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      table.classList.toggle("folded", late > 0 && words.length === 0 && fold.dataset.open !== "yes");
      for (const row of bodyRows(table).filter((each) => !isFixed(each))) {
        const text = row.textContent.toLowerCase();
        row.classList.toggle("hidden", !words.every((word) => text.includes(word)));
      }
    });
  }
  const fold = element("button", `show all ${shown + late}`, tools);
  fold.type = "button";
  fold.hidden = late === 0;
  table.classList.toggle("folded", late > 0);
  fold.addEventListener("click", () => {
    const open = fold.dataset.open !== "yes";
    fold.dataset.open = open ? "yes" : "no";
    fold.textContent = open ? `show the first ${shown}` : `show all ${shown + late}`;
    table.classList.toggle("folded", !open);
  });
  const save = element("button", "save as CSV", tools);
  save.type = "button";
  save.addEventListener("click", () => saveCsv(table));
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    if (cell.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => sortBy(table, column, button));
  });
}

if (matchMedia("(max-width: 700px)").matches) document.querySelector(".recipe").open = false;

// fold the details of groups beyond the first ones
for (const section of document.querySelectorAll("section.table")) {
  const late = section.querySelectorAll("details.of-group.more");
  if (!late.length) continue;
  section.classList.add("folded");
  const button = element("button", `show the classes of ${late.length} more groups`, document.createElement("p"));
  button.type = "button";
  button.parentElement.className = "tools";
  late[0].before(button.parentElement);
  button.addEventListener("click", () => {
    for (const part of late) part.classList.remove("more");
    button.parentElement.remove();
  });
}

// paper cannot be clicked, so open all details
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
