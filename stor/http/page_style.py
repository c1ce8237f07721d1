"""How the page at `/` looks, on a wide screen and on a phone, by day and by night."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f2; --card: #fff; --ink: #23262b; --soft: #6d7178;
  --line: #e4e2dc; --track: #ebe9e3; --good: #3d7a57; --warn: #97690f; --bad: #b3402f;
  --f0: #7d96ad; --f1: #5f83a6; --f2: #c08a1e; --f3: #b3402f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e3e4e6;
  --soft: #979ba2; --line: #2c3036; --track: #2c3036; --good: #7dbb95; --warn: #d6a850;
  --bad: #e58672; --f0: #5d7d99; --f1: #6f9cc4; --f2: #d6a850; --f3: #e58672; } }
* { box-sizing: border-box; margin: 0; padding: 0; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 120rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; overflow-wrap: anywhere; }
header { display: flex; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.1rem; font-weight: 650; letter-spacing: .01em; }
h2 { font-size: clamp(1.3rem, 1rem + 1.8vw, 1.65rem); font-weight: 600; line-height: 1.3;
  letter-spacing: -.01em; display: flex; gap: .55em; align-items: baseline; }
h3 { font-size: 1rem; font-weight: 600; }
ul { list-style: none; }
.soft { color: var(--soft); font-size: .875rem; }
.verdict { margin: 1.75rem 0 1.5rem; }
.verdict h2::before { content: ""; flex: none; width: .62em; height: .62em; border-radius: 50%;
  background: currentColor; }
.verdict.good h2::before { color: var(--good); }
.verdict.warn h2::before { color: var(--warn); }
.verdict.bad h2::before { color: var(--bad); }
.verdict li { margin: .3rem 0 0 1.66rem; color: var(--soft); }
.verdict a { color: var(--bad); font-weight: 600; text-decoration-thickness: 1px;
  text-underline-offset: .15em; }
.verdict .warn a { color: var(--warn); }
.many { columns: 26rem; column-gap: 2rem; }
.verdict .many li { margin-top: 0; padding-top: .3rem; break-inside: avoid; }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.25rem; margin: 0 0 1.75rem; }
dt { color: var(--soft); font-size: .8125rem; }
dd { font-size: 1.125rem; font-variant-numeric: tabular-nums; }
dd.warn { color: var(--warn); font-weight: 600; }
@media (max-width: 40rem) { dl { display: grid; grid-template-columns: 1fr 1fr; } }
.cards { display: grid; gap: 1rem; margin: 0 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1rem 1.25rem 1.25rem; }
.top { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: 0 1rem; }
.card .disk { margin-top: 1rem; }
.state { font-size: .875rem; white-space: nowrap; color: var(--soft); }
.online .state { color: var(--good); }
.suspect .state, .incomplete .state, .unwritable .state { color: var(--warn); }
.offline .state { color: var(--bad); font-weight: 600; }
.bar { display: block; width: 100%; height: .5rem; margin: .4rem 0 .3rem; border-radius: .25rem;
  background: var(--track); overflow: hidden; }
.f0 rect { fill: var(--f0); } .f1 rect { fill: var(--f1); }
.f2 rect { fill: var(--f2); } .f3 rect { fill: var(--f3); }
.offline .bar { opacity: .45; }
.reason { font-size: .875rem; color: var(--bad); }
.suspect .reason, .read-only .reason, .unwritable .reason { color: var(--warn); }
:target { outline: 2px solid var(--warn); outline-offset: .25rem; border-radius: .25rem; }
.table { display: grid; column-gap: 2.5rem; font-size: .875rem; margin-top: .4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 35rem), 1fr)); }
.table section { display: flex; gap: .75rem; padding: .3rem 0; align-items: baseline;
  border-top: 1px solid var(--line); }
.table h3 { font-size: .875rem; min-width: 2.1rem; color: var(--soft); }
.table ul { flex: 1; display: grid; gap: .1rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); }
.table .disk { display: grid; grid-template-columns: 1fr 2.5rem 3.25rem; gap: 0 .4rem;
  align-items: center; font-size: .8125rem; }
.table .disk .soft { text-align: right; font-size: .8125rem; white-space: nowrap; }
.table .state, .table .reason { grid-column: 1 / -1; font-size: .8125rem; white-space: normal; }
.table .bar { margin: 0; height: .4rem; }
.table p.soft { font-size: .8125rem; text-align: right; min-width: 4.25rem; }
.table p.soft span { display: block; }
.explained { margin: 0 0 1.75rem; }
.explained form { display: flex; flex-wrap: wrap; gap: .35rem .75rem; align-items: center; }
.explained label { color: var(--soft); font-size: .875rem; }
.explained input { flex: 0 1 38rem; min-width: 0; font: .8125rem/1.5 ui-monospace, monospace;
  color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .3rem .6rem; }
.explained button { font: inherit; font-size: .875rem; color: inherit; background: var(--track);
  border: 1px solid var(--line); border-radius: .4rem; padding: .2rem .9rem; cursor: pointer; }
.explained h3 { margin: .9rem 0 .3rem; } .explained li { margin: .2rem 0; }
.explained p { margin-top: .5rem; } .explained a { color: inherit; }
.jobs { margin: 0 0 1.25rem; }
.jobs li { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: center; }
.jobs span { flex: 1 1 16rem; } .jobs span:first-child { flex: 0 1 26rem; }
.jobs .bar { flex: none; width: 6rem; margin: .3rem 0; }
footer { margin-top: 2rem; }
"""
