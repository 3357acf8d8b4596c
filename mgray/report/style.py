"""The look of the report's page; colours that the pictures use have the names that `plots.VARIABLES` gives them."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f3f4f6; --card: #ffffff; --ink: #1b2027; --muted: #5a6472; --rule: #dde1e7; --key: #eef4f9; --code: #f3f4f6;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #cc79a7; --series-4: #9a7b00; --series-5: #56b4e9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111418; --card: #1a1f25; --ink: #e8ebef; --muted: #a3adb9; --rule: #333b45; --key: #202a34; --code: #111418;
    --series-0: #4fb0ea; --series-1: #ff8c42; --series-2: #3fc79a; --series-3: #e29bc4; --series-4: #d9b93b; --series-5: #8fd0f5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.3; margin: 4px 0 6px; text-wrap: balance; }
h1 span { white-space: nowrap; }
h2 { font-size: 20px; margin: 40px 0 12px; }
h3 { font-size: 16px; margin: 0 0 4px; }
p { margin: 8px 0; }
.eyebrow, .caption, .notes, footer { color: var(--muted); font-size: 14px; }
.eyebrow { margin: 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; margin: 0 0 16px; }
.card > .caption { margin: 0 0 10px; }
.card svg { display: block; width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 20px 0 4px; }
.tiles .card { margin: 0; padding: 12px 16px; }
.tiles b { display: block; font-size: 26px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { text-align: left; font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
tr.key > * { font-weight: 700; background: var(--key); }
table.text th, table.text td { text-align: left; white-space: normal; }
table.dense th, table.dense td { padding: 5px 6px; }
table.told td { text-align: right; }
table.told td:first-child { font-weight: 700; }
table.told th:last-child, table.told td:last-child { text-align: left; white-space: normal; width: 60%; min-width: 260px; overflow-wrap: anywhere; }
.choice > span { color: var(--muted); font-size: 14px; margin-right: 8px; }
.choice > input { position: absolute; opacity: 0; }
.choice > label { display: inline-block; font-size: 14px; padding: 3px 12px; margin: 0 4px 8px 0; border: 1px solid var(--rule); border-radius: 999px; cursor: pointer; }
.choice > input:checked + label { background: var(--ink); border-color: var(--ink); color: var(--card); }
.choice > input:focus-visible + label { outline: 2px solid var(--series-0); outline-offset: 2px; }
.panes > div { display: none; }
.choice > input:nth-of-type(1):checked ~ .panes > :nth-child(1),
.choice > input:nth-of-type(2):checked ~ .panes > :nth-child(2),
.choice > input:nth-of-type(3):checked ~ .panes > :nth-child(3),
.choice > input:nth-of-type(4):checked ~ .panes > :nth-child(4),
.choice > input:nth-of-type(5):checked ~ .panes > :nth-child(5),
.choice > input:nth-of-type(6):checked ~ .panes > :nth-child(6) { display: block; }
.matrix { display: grid; grid-template-columns: minmax(0, 3fr) minmax(240px, 2fr); gap: 24px; align-items: start; }
.matrix h4 { margin: 0 0 6px; font-size: 14.5px; }
.matrix svg rect { fill: var(--series-0); }
.matrix svg rect.frame { fill: none; stroke: var(--rule); }
.matrix svg text { fill: var(--ink); font-family: system-ui, sans-serif; }
.matrix svg text.on { fill: var(--card); }
table.pairs td, table.pairs th { white-space: normal; overflow-wrap: anywhere; }
table.pairs td:nth-child(2), table.pairs th:nth-child(2) { text-align: left; }
table.pairs td:last-child { white-space: nowrap; }
table.bars td:last-child { width: 40%; }
table.bars i { display: block; height: 10px; margin-top: 6px; border-radius: 3px; background: var(--series-0); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; }
.notes { padding-left: 20px; margin: 10px 0 0; }
details { border-top: 1px solid var(--rule); padding: 8px 0; }
details:first-of-type { border-top: 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 6px; padding: 12px; overflow-x: auto;
      font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0; }
@media (max-width: 640px) {
  main { padding: 16px 10px 40px; }
  h1 { font-size: 21px; }
  .card { padding: 12px; }
  .matrix { grid-template-columns: 1fr; }
  .picture svg { min-width: 660px; }
  table { font-size: 13px; }
  th, td { padding: 5px 6px; }
  th:first-child { white-space: normal; }
}
@media print {
  :root { --page: #ffffff; --card: #ffffff; --ink: #1b2027; --muted: #5a6472; --rule: #dde1e7; --key: #eef4f9; --code: #f3f4f6; }
  main { max-width: none; padding: 0; }
  .card { break-inside: avoid; border-radius: 0; }
  .scroll { overflow: visible; }
  .choice > input:not(:checked) + label { display: none; }
}
"""
