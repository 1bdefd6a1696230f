"""The style of a report's page: light and dark by the reader's setting, light in print."""

STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #1d2129; --faint: #5c6470; --page: #ffffff; --panel: #f5f6f8; --grid: #d5d8dd;
  --good: #00704f; --bad: #a8321c; --warn: #fff2d6; --warn-ink: #6b4300; --warn-edge: #d99a1f;
  --segment: #00a277; --retrieval: #3f8fd0;
  --s0: #0072b2; --s1: #c1510a; --s2: #00805e; --s3: #a8487f; --s4: #8a6d00; --s5: #5a6270;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8ec; --faint: #a3abb8; --page: #14171c; --panel: #1d2128; --grid: #3a404b;
    --good: #4fd1a5; --bad: #ff9a80; --warn: #3a2d10; --warn-ink: #ffdf9e; --warn-edge: #c98f1e;
    --segment: #35c79a; --retrieval: #56a9e0;
    --s0: #56a9e0; --s1: #f0884a; --s2: #35c79a; --s3: #e08dbb; --s4: #e0b93a; --s5: #a9b2c0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 {
  font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem;
  border-top: 2px solid var(--grid);
}
h3 { font-size: 1.02rem; margin: 1.75rem 0 .4rem; }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
p.note { color: var(--faint); }
p.warning {
  background: var(--warn); color: var(--warn-ink); border-left: 4px solid var(--warn-edge);
  padding: .6rem .8rem; border-radius: 3px;
}
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding: 0 0 .35rem; }
th, td {
  padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; font-weight: normal;
  border-bottom: 1px solid var(--grid); overflow-wrap: break-word; max-width: 22rem;
}
thead th { font-weight: 600; vertical-align: bottom; border-bottom-width: 2px; }
/* On a narrow screen a table scrolls sideways; its sentences stay where they can be read. */
caption span, tr.note span {
  position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem);
}
.number { text-align: right; white-space: nowrap; padding-left: .7rem; }
thead .number { white-space: normal; }
.noted th[scope="row"], .own th[scope="row"] { min-width: 13rem; }
.notes .number { white-space: normal; }
tr.noted th, tr.noted td { border-bottom: 0; padding-bottom: 0; }
tr.note td { color: var(--faint); font-size: .92em; max-width: none; padding-top: .1rem; }
tr.own th, tr.own td { font-weight: 600; background: var(--panel); }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 35rem; height: auto; }
figcaption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.example {
  border: 1px solid var(--grid); border-radius: 6px; padding: .8rem 1rem; margin: 1rem 0;
}
.example h3 { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
.outcome { color: var(--bad); text-transform: uppercase; letter-spacing: .04em; font-size: .8rem; }
.right .outcome { color: var(--good); }
.about { color: var(--faint); font-size: .85rem; margin: .1rem 0 .5rem; }
.question { font-weight: 600; white-space: pre-line; }
.options { list-style: none; margin: .3rem 0 .8rem; padding: 0; overflow-wrap: anywhere; }
.letter { display: inline-block; width: 1.4em; color: var(--faint); }
.mark {
  font-size: .75rem; border: 1px solid currentColor; border-radius: 3px; padding: 0 .35em;
  color: var(--faint); white-space: nowrap;
}
.timeline { font-size: .8rem; margin: .5rem 0; }
.lane { display: grid; grid-template-columns: 4.8rem 1fr 15rem; gap: .6rem; align-items: center; }
.lane svg { display: block; overflow: visible; }
.lane .note { color: var(--faint); }
.ends { display: flex; justify-content: space-between; color: var(--faint); }
.track { fill: var(--grid); }
.segment { fill: var(--segment); }
.retrieval { fill: var(--retrieval); fill-opacity: .55; }
.tick { stroke: var(--ink); stroke-width: 1.5; }
.step { font-size: .85rem; }
.step p { margin: .4rem 0 .15rem; color: var(--faint); }
pre {
  margin: 0; padding: .5rem .7rem; background: var(--panel); border-radius: 3px; font-size: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
@media (max-width: 40rem) {
  body { font-size: 14px; }
  .noted th[scope="row"], .own th[scope="row"] { min-width: 8.5rem; }
  figure { overflow-x: auto; }
  figure svg { min-width: 23rem; }
  .lane { grid-template-columns: 4.2rem 1fr; }
  .lane .note { grid-column: 2; margin-bottom: .3rem; }
}
@media print {
  :root {
    color-scheme: light;
    --ink: #000; --faint: #444; --page: #fff; --panel: #f2f2f2; --grid: #c4c7cc;
    --good: #00704f; --bad: #a8321c; --warn: #fff2d6; --warn-ink: #4d3000; --warn-edge: #d99a1f;
    --segment: #00a277; --retrieval: #3f8fd0;
    --s0: #0072b2; --s1: #c1510a; --s2: #00805e; --s3: #a8487f; --s4: #8a6d00; --s5: #5a6270;
  }
  body { font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  .table { overflow: visible; }
  table { font-size: 7.5pt; }
  .number { white-space: normal; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .example { break-inside: avoid; }
}
"""
