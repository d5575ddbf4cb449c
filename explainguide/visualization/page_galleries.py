"""Sections of pictures in the evaluation page: examples with their maps, and mean maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from explainguide.visualization.evaluation_data import (
    EvaluationPage,
    Example,
    Gallery,
    MeanMaps,
    MetricNote,
)
from explainguide.visualization.overlays import Box
from explainguide.visualization.page import safe
from explainguide.visualization.page_numbers import value_text
from explainguide.visualization.page_pictures import (
    as_image,
    as_map,
    colour_ramp,
    map_alone,
    map_on,
    outlines,
    picture,
    shrink,
    where,
)

__all__ = ["galleries", "mean_maps"]

_OPEN = 8  # examples of a gallery that are not folded away


@dataclass(frozen=True)
class _KindText:
    """What a kind of gallery says: its heading, a sentence, and what an outline is."""

    heading: str
    text: str
    outline: str


_KINDS = {
    "grid": _KindText(
        "Grids",
        "Several images are put together. The class is shown in the outlined cell alone, so that is "
        "where its evidence must lie.",
        "the cell of the class",
    ),
    "best": _KindText("Best images", "Those with the best scores.", "box"),
    "worst": _KindText("Worst images", "Those with the worst scores.", "box"),
    "before_after": _KindText(
        "Before and after", "The maps of two models on the same images.", "box"
    ),
}


# What the ends of the colours are.
_ENDS = {"positive": ("nothing", "most"), "signed": ("against the class", "for it")}


def galleries(page: EvaluationPage) -> str:
    """The galleries of a page, each under its heading."""
    if not page.galleries:
        return ""
    html = "<p>Each map has a scale of its own: colours compare places in a map, not maps.</p>\n"
    html += "".join(
        f'<p class="scale">{_ENDS[sign][0]} {colour_ramp(sign)} {_ENDS[sign][1]}</p>\n'
        for sign in dict.fromkeys(gallery.sign for gallery in page.galleries)
    )
    for number, gallery in enumerate(page.galleries):
        kind = _KINDS[gallery.kind]
        of = f": {gallery.of}" if gallery.of else ""
        html += f"<h3>{safe(kind.heading + of)}</h3>\n<p>{safe(kind.text)}</p>\n"
        metric = page.metrics[gallery.metric]
        shown = [
            _example(example, f"galleries[{number}].examples[{i}]", gallery, metric)
            for i, example in enumerate(gallery.examples)
        ]
        html += f'<div class="examples">{"".join(shown[:_OPEN])}</div>\n'
        rest = shown[_OPEN:]
        if rest:
            more = f"{len(rest)} more of these: {kind.heading.lower()}"
            html += f"<details><summary>{safe(more)}</summary>"
            html += f'<div class="examples">{"".join(rest)}</div></details>\n'
    return html


def _example(example: Example, name: str, gallery: Gallery, metric: MetricNote) -> str:
    image = as_image(f"{name}.image", example.image)
    size = (int(image.shape[-2]), int(image.shape[-1]))
    boxes = outlines(f"{name}.boxes", example.boxes, image)
    small = shrink(image)
    what = f"{example.name}, {example.class_name}"
    parts = [
        _part(picture(small, f"{what}{_outlined(boxes, gallery)}", boxes=boxes, size=size), "image")
    ]
    for i, shown in enumerate(example.maps):
        attribution = as_map(f"{name}.maps[{i}].attribution", shown.attribution)
        score = f"{metric.title} {value_text(shown.score, metric)}"
        alt = f"Map of {shown.label} on {what}: {where(attribution, gallery.sign)}, {score}"
        overlaid = map_on(small, attribution, gallery.sign)
        html = picture(overlaid, alt, boxes=boxes, size=size)
        parts.append(_part(html, f"{shown.label}: {score}" if shown.label else score))
    words = f"<bdi>{safe(example.name)}</bdi>, <bdi>{safe(example.class_name)}</bdi>"
    return (
        f'<figure class="example"><div class="shots of-{min(len(parts), 4)}">{"".join(parts)}</div>'
        f"<figcaption>{words}</figcaption></figure>\n"
    )


def _outlined(boxes: Sequence[Box], gallery: Gallery) -> str:
    if not boxes:
        return ""
    outline = _KINDS[gallery.kind].outline
    if len(boxes) == 1:
        return f"; {outline} outlined" if outline.startswith("the ") else f"; 1 {outline} outlined"
    return f"; {len(boxes)} boxes outlined"


def _part(html: str, words: str) -> str:
    return f'<div class="part">{html}<p>{safe(words)}</p></div>'


def mean_maps(page: EvaluationPage) -> str:
    """The mean maps of a page, bin by bin."""
    if not page.mean_maps:
        return ""
    html = (
        "<p>All maps are sorted by their score; those of a bin of percentiles are averaged. Each mean "
        "has a scale of its own.</p>\n"
    )
    for number, means in enumerate(page.mean_maps):
        title = f"{means.of}, sorted by {page.metrics[means.metric].title}"
        html += f"<h3>{safe(title)}</h3>\n"
        parts = _bins(means, f"mean_maps[{number}]")
        html += f'<figure><div class="bins">{parts}</div></figure>\n'
    return html


def _bins(means: MeanMaps, name: str) -> str:
    html = ""
    for i, part in enumerate(means.bins):
        maps = "1 map" if part.count == 1 else f"{part.count:,} maps"
        words = f"{part.label}: {maps}"
        if part.attribution is None:
            html += _part('<div class="shot none"></div>', f"{part.label}: no map")
            continue
        attribution = as_map(f"{name}.bins[{i}].attribution", part.attribution)
        alt = f"Mean of {maps}, {part.label}: {where(attribution, means.sign)}"
        html += _part(picture(map_alone(attribution, means.sign), alt), words)
    return html
