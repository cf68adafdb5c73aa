"use strict";

// shares of the true class, first less second, in percentage points
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
  element("th", "", head);
  for (const name of names) {
    element("col", "", columns);
    element("span", name, element("th", "", head));
  }
  const body = element("tbody", "", table);
  values.forEach((row, i) => {
    const line = element("tr", "", body);
    element("th", names[i], line);
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
    const what = i === j ? "found" : `called ${names[j]}`;
    element("li", `${signed(points)} points: ${names[i]} ${what}`, list);
  }
}

for (const part of document.querySelectorAll(".difference")) {
  const data = JSON.parse(part.querySelector("script").textContent);
  const [a, b] = [part.querySelector(".a"), part.querySelector(".b")];
  const draw = () => {
    const [first, second] = [data.sides[a.value], data.sides[b.value]];
    const place = part.querySelector(".shown");
    place.replaceChildren();
    part.querySelector("figcaption").textContent = `${first.label}, less ${second.label}`;
    (data.list ? drawList : drawMatrix)(data.names, differenceOf(first.counts, second.counts), place);
  };
  a.addEventListener("change", draw);
  b.addEventListener("change", draw);
  draw();
}

// paper cannot be clicked
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
