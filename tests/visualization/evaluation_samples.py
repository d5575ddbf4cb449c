"""A full evaluation page, with names that try to be markup, for its tests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from explainguide.report import (
    Bars,
    Difference,
    EvaluationPage,
    Example,
    Gallery,
    LayerTable,
    MeanMap,
    MeanMaps,
    MetricNote,
    Pareto,
    Result,
    Score,
    ShownMap,
)

EVIL = "</title></style></svg><script>alert('x')</script><img src=x onerror=alert(1)>\" ' & \u202e\x00.jpg"

METRICS = {
    "epg": MetricNote(
        "EPG", "Share of the positive evidence that lies within the boxes of the class."
    ),
    "iou": MetricNote("IoU", "Overlap of the map, cut at a threshold, with the boxes."),
    "deletion": MetricNote(
        "Deletion",
        "How much of the class's probability is left while the places that count most are removed.",
        better="lower",
    ),
    "shift": MetricNote(
        "Shift", "Distance between two maps, in pixels.", better="neither", high=None, percent=False
    ),
}


def scene(seed: int, *, height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth picture with a bright disc, ``(H, W, 3)`` of 0 to 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [np.sin(2 * math.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 3, (3, 3))]
    image = 0.4 + 0.2 * np.stack(waves, -1)
    image[(x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.04] = rng.uniform(0.6, 1, 3)
    image += rng.normal(0, 0.03, image.shape)
    return (255 * image.clip(0, 1)).astype(np.uint8)


def bump(across: float, down: float, *, side: int = 14) -> np.ndarray:
    """A map that is strongest at a place, slightly negative elsewhere."""
    y, x = np.mgrid[:side, :side] / side
    return np.exp(-((x - across) ** 2 + (y - down) ** 2) / 0.03) - 0.1


def example(
    seed: int, *maps: ShownMap, name: str | None = None, class_name: str = "boat"
) -> Example:
    return Example(
        scene(seed),
        name or f"2007_{seed:06d}.jpg",
        class_name,
        maps or (ShownMap("", bump(0.6, 0.4), 0.1 * (seed % 10)),),
        np.array([[128.0, 30.0, 256.0, 160.0]]),
    )


def full_page(**changes: Any) -> EvaluationPage:
    """Everything that a page can have."""
    rows = [
        Result(
            "unguided.safetensors",
            {
                "epg": Score(0.396, 0.371, 0.421, undefined=12, total=2510),
                "iou": Score(0.212, 0.201, 0.224),
                "deletion": Score(0.151, 0.140, 0.163),
                "shift": Score(3.25),
            },
            "ixg",
            "layer4",
            notes=["its EPG does not beat a centred Gaussian, 39.6% against 41.0%."],
        ),
        Result(
            "guided.safetensors",
            {
                "epg": Score(0.501, 0.480, 0.522),
                "iou": Score(0.287, 0.270, 0.303),
                "deletion": Score(0.162, 0.150, 0.174, note="on 2,000 images"),
                "shift": Score(2.5),
            },
            "ixg",
            "layer4",
        ),
        Result(
            "guided.safetensors",
            {"epg": Score(float("nan"), undefined=2510, total=2510), "iou": Score(0.190)},
            "GuidedBackprop",
            "input",
        ),
        Result(
            "centred Gaussian",
            {"epg": Score(0.410, 0.395, 0.425), "iou": Score(0.255, 0.24, 0.27)},
            reference=True,
        ),
        Result(EVIL, {"epg": Score(0.1, 0.05, 0.15)}, EVIL, EVIL),
    ]
    labels = [row.label for row in rows]
    names = ["aeroplane", "bicycle", "bird", "boat", "potted plant", EVIL]
    of_classes = {
        name: {
            label: Score(
                0.3 + 0.05 * i + 0.1 * n, 0.25 + 0.05 * i + 0.1 * n, 0.36 + 0.05 * i + 0.1 * n
            )
            for n, label in enumerate(("unguided", "guided"))
        }
        for i, name in enumerate(names)
    }
    layers = ("input", "layer2", "layer4")
    page = EvaluationPage(
        title="VOC 2007, guided and unguided",
        metrics=METRICS,
        results=rows,
        summary="Two checkpoints of a ResNet-18 on the val split.\n\nGuided with energy at layer4.",
        differences=[
            Difference(
                labels[0],
                labels[1],
                {
                    "epg": Score(0.105, 0.091, 0.119),
                    "deletion": Score(0.011, 0.004, 0.018),
                    "iou": Score(0.075, -0.002, 0.152),
                    "shift": Score(-0.75, -0.9, -0.6),
                },
                2510,
            )
        ],
        bars=[
            Bars("By class", "epg", of_classes),
            Bars(
                "By group",
                "epg",
                {
                    "land bird on water": {"guided": Score(0.61, 0.5, 0.7, note="46 images")},
                    "water bird on land": {"guided": Score(None)},
                },
                "Groups are class and background together.",
            ),
        ],
        trade_offs=[
            Pareto(
                "iou",
                "epg",
                {
                    "unguided": (0.212, 0.396),
                    "energy, lam 0.1": (0.25, 0.46),
                    "energy, lam 0.3": (0.251, 0.501),
                    "l1, lam 0.3": (0.305, 0.44),
                    EVIL: (0.22, 0.42),
                    "no map": (0.2, math.nan),
                },
                front=["energy, lam 0.3", "l1, lam 0.3"],
            )
        ],
        layer_tables=[
            LayerTable(
                "epg",
                {
                    method: {
                        layer: Score(0.2 + 0.1 * i + 0.03 * j) for j, layer in enumerate(layers)
                    }
                    for i, method in enumerate(("ixg", "GradCAM", "Occlusion"))
                },
            )
        ],
        mean_maps=[
            MeanMaps(
                labels[1],
                "epg",
                [
                    MeanMap(label, count, None if count == 0 else bump(0.3 + 0.08 * i, 0.5))
                    for i, (label, count) in enumerate(
                        [
                            *(("0 to 2%", 50), ("2 to 5%", 75), ("5 to 50%", 1130)),
                            *(("50 to 95%", 1130), ("95 to 98%", 1), ("98 to 100%", 0)),
                        ]
                    )
                ],
            )
        ],
        galleries=[
            Gallery("grid", "epg", [grid(0), grid(5)], labels[1]),
            Gallery("best", "epg", [example(i) for i in range(3)], labels[1]),
            Gallery("worst", "epg", [example(i) for i in range(20, 30)], labels[1], sign="signed"),
            Gallery(
                "before_after",
                "epg",
                [
                    example(
                        i,
                        ShownMap("unguided", bump(0.2, 0.8), 0.21),
                        ShownMap("guided", torch.from_numpy(bump(0.6, 0.4)), 0.83),
                    )
                    for i in range(40, 44)
                ]
                + [
                    example(
                        44,
                        ShownMap(EVIL, -np.ones((7, 7))),
                        name=EVIL,
                        class_name=EVIL,
                    )
                ],
            ),
        ],
        not_shown=[
            "Whether a map is faithful to the network: EPG says where the evidence lies, not whether "
            "it is evidence.",
            "Images without a box.",
        ],
        provenance={
            "Command": "explainguide evaluate unguided.safetensors guided.safetensors --data voc "
            "--root VOC2007 --report report.html",
            "Versions": "explainguide 0.1, torch 2.5, Python 3.11",
            "Data": f"VOC 2007 val, 2,510 images, {EVIL}",
            "Seed": "0",
            "Date": "2024-05-01",
        },
        skipped={
            "2007_000123.jpg": "cannot be read (image file is truncated)",
            EVIL: EVIL,
            "b.jpg": "",
        },
    )
    return replace(page, **changes)


def grid(seed: int) -> Example:
    """Nine images, the class in one cell."""
    rows = [
        np.concatenate([scene(seed + 3 * i + j, height=64, width=64) for j in range(3)], 1)
        for i in range(3)
    ]
    return Example(
        np.concatenate(rows),
        f"grid {seed}",
        "bird",
        [ShownMap("", bump(0.8, 0.2, side=21), 0.55)],
        torch.tensor([[128.0, 0.0, 192.0, 64.0]]),
    )
