"""What benchmarks say of TLEG's options."""

from __future__ import annotations

from collections.abc import Mapping

from edgetl.recipe.schema import Measured

EQUAL = "fashion-mnist, equal images: {}, mean over depths, points"

EVIDENCE: Mapping[str, tuple[Measured, ...]] = {
    "mode": (
        Measured("learngene", EQUAL.format("tleg over tleg_paper"), 1.259, -0.712, 3.23),
        Measured("learngene", EQUAL.format("tleg over picked"), -0.632, -1.385, 0.121),
    ),
    "share": (
        Measured("learngene", EQUAL.format("sws over tleg"), 0.639, -0.95, 2.228),
        Measured("learngene", EQUAL.format("polynomial over tleg"), 0.513, -0.413, 1.44),
    ),
}
