"""The style of the evaluation page, after the one that all pages share."""

from __future__ import annotations

__all__ = ["RULES"]

RULES = """
:root { --good: #0b6b3a; --bar-0: #0b6fb0; --bar-1: #b4560b; --bar-2: #1c7d5a; --bar-3: #9a4a7c;
  --grid: #dcdfe4; --link: #0b57d0; --edge: #c3c8d0; }
@media (prefers-color-scheme: dark) {
  :root { --good: #7ddaa3; --bar-0: #57a8dc; --bar-1: #e08a45; --bar-2: #46b48a; --bar-3: #cf86b3;
    --grid: #363c44; --link: #8ab4f8; --edge: #4a525c; } }
body { max-width: 72rem; }
h2 { margin: 3rem 0 1rem; font-size: 1.45rem; line-height: 1.25; }
h3 { margin: 2rem 0 0.75rem; font-size: 1.1rem; line-height: 1.3; }
h1, h2, h3, li, dd { overflow-wrap: anywhere; }
a { color: var(--link); }
.skip { position: absolute; left: -100rem; top: 0.5rem; padding: 0.5rem 0.9rem;
  background: var(--paper); }
.skip:focus { left: 1.25rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0 1.25rem; margin: 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: 0.3rem 0; }
ul { margin: 0 0 1rem; padding-left: 1.25rem; max-width: 42rem; }
small { color: var(--soft); font-size: 0.85rem; font-weight: 400; }
caption { padding-bottom: 0.6rem; color: var(--soft); font-size: 0.95rem; text-align: left;
  caption-side: top; }
caption span { position: sticky; left: 0; display: inline-block;
  max-width: min(48rem, calc(100vw - 2.5rem)); }
/* A shadow at the right while there is more to scroll to. */
.wide { margin: 1rem 0; background:
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--edge), transparent) right / 0.8rem 100% no-repeat scroll; }
.wide th:first-child { position: sticky; left: 0; background: var(--paper); }
.wide tbody th:first-child { min-width: 13rem; max-width: 20rem; overflow-wrap: anywhere; }
.charts .wide tbody th:first-child { min-width: 9rem; }
.best, .says { color: var(--good); font-size: 0.85rem; font-weight: 600; }
.says { color: var(--ink); }
dl { margin: 0 0 1rem; max-width: 52rem; }
dt { margin-top: 0.75rem; font-weight: 600; }
dd { margin: 0; }
.how { display: grid; grid-template-columns: fit-content(12rem) 1fr; gap: 0.25rem 1.25rem; }
.how dt { margin: 0; }
td.bar { width: 60%; min-width: 7rem; vertical-align: middle; }
svg.bar { display: block; overflow: visible; border-left: 1px solid var(--soft); }
.series-0 { fill: var(--bar-0); } .series-1 { fill: var(--bar-1); }
.series-2 { fill: var(--bar-2); } .series-3 { fill: var(--bar-3); }
.under { stroke: var(--paper); stroke-width: 4px; }
.whisker { stroke: var(--ink); stroke-width: 2px; }
.plot { display: block; width: 100%; max-width: 34rem; height: auto; }
.plot text { fill: var(--ink); font-size: 12px; }
.plot .tick { fill: var(--soft); } .plot .middle { text-anchor: middle; }
.plot .end { text-anchor: end; } .plot .name { font-weight: 600; }
.plot .grid { stroke: var(--grid); stroke-width: 1px; }
.front { fill: none; stroke: var(--bar-0); stroke-width: 1.5px; }
.on-front { fill: var(--bar-0); stroke: var(--bar-0); stroke-width: 1.5px; }
.off-front { fill: var(--paper); stroke: var(--bar-0); stroke-width: 1.5px; }
.scale { font-size: 0.95rem; } .ramp { vertical-align: middle; }
.examples { display: grid; gap: 1.5rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
details .examples { padding: 0 0.9rem; }
details ul { padding-right: 0.9rem; }
figure { margin: 1.5rem 0; }
.example { margin: 0; }
.example figcaption { margin-top: 0.25rem; overflow-wrap: anywhere; }
.shots { display: grid; gap: 0.5rem; align-items: start; grid-template-columns: 1fr 1fr; }
.of-1 { grid-template-columns: 1fr; }
.of-3, .of-4 { grid-template-columns: 1fr 1fr 1fr; }
.shot { position: relative; }
.shot img { display: block; width: 100%; height: auto; }
.part p { margin: 0.25rem 0 0; font-size: 0.875rem; line-height: 1.35; overflow-wrap: anywhere; }
.boxes { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.boxes rect { fill: none; vector-effect: non-scaling-stroke; }
.boxes .dark { stroke: #000; stroke-width: 4px; } .boxes .light { stroke: #fff; stroke-width: 2px; }
.bins { display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); max-width: 60rem; }
.none { aspect-ratio: 1; border: 1px dashed var(--soft); }
@media (max-width: 30rem) {
  body { padding-top: 1.25rem; } .wide tbody th:first-child { min-width: 7rem; max-width: 9rem; }
  .how { display: block; } .how dt { margin-top: 0.6rem; } th, td { padding-right: 0.5rem; }
  th:not(:first-child), td { padding-left: 0.5rem; }
  .charts table { font-size: 0.875rem; } .charts td.bar { width: auto; min-width: 4rem; }
  .charts .wide tbody th:first-child { min-width: 5rem; max-width: 6rem; }
  .of-3 { grid-template-columns: 1fr 1fr; } .of-3 .part:first-child { grid-column: 1 / -1;
    max-width: 50%; } }
@media print {
  :root { --good: #0b6b3a; --bar-0: #0b6fb0; --bar-1: #b4560b; --bar-2: #1c7d5a; --bar-3: #9a4a7c;
    --grid: #dcdfe4; --link: #0b57d0; }
  nav, .skip { display: none; } html { font-size: 12px; }
  .wide { background: none; }
  .wide tbody th:first-child { position: static; min-width: 7rem; max-width: 12rem; }
  th:not(:first-child), td { padding-left: 0.4rem; } th, td { padding-right: 0.4rem; }
  h2, h3, h3 + p, caption { break-after: avoid; }
  .examples { grid-template-columns: 1fr 1fr; gap: 1rem; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
