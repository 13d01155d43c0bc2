"""Coverage and accuracy if a model answers only above a confidence threshold."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def by_threshold(
    confidence: Sequence[float], right: Sequence[bool], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float | None]]:
    """Return the number of `answered` images, their `share` of all images and their `accuracy` for each threshold.

    An image is answered if its confidence is at least the threshold. The accuracy is None if no image is answered.
    """
    rows: list[dict[str, float | None]] = []
    for threshold in thresholds:
        hits = [hit for sure, hit in zip(confidence, right, strict=True) if sure >= threshold]
        rows.append(
            {
                "threshold": threshold,
                "answered": len(hits),
                "share": len(hits) / len(confidence),
                "accuracy": sum(hits) / len(hits) if hits else None,
            }
        )
    return rows


def coverage_and_accuracy(confidence: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """Return the share of images answered and the accuracy on these images, at every distinct confidence threshold.

    The highest threshold comes first. Images with the same confidence are answered together.
    """
    ranked = sorted(zip(confidence, right, strict=True), key=lambda pair: -pair[0])
    points, hits = list[tuple[float, float]](), 0
    for place, (sure, hit) in enumerate(ranked, 1):
        hits += hit
        if place == len(ranked) or ranked[place][0] < sure:
            points.append((place / len(ranked), hits / place))
    return points
