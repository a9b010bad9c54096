"""What benchmarks say of OPTIN's options."""

from __future__ import annotations

from collections.abc import Mapping

from edgetl.recipe.schema import Measured

EVIDENCE: Mapping[str, tuple[Measured, ...]] = {
    "score": (
        Measured("optin", "demo, keep <= 0.6: normalised keeps more than paper, points", 0.49, 0.22, 0.77),
        Measured("optin", "vit-fashion-mnist, keep <= 0.6: normalised keeps more than paper, points", 0.25, 0.13, 0.36),
        Measured("optin", "minilm-text, keep <= 0.6: normalised keeps more than paper, points", 0.23, -0.12, 0.59),
    ),
    "compensate": (
        Measured("optin", "demo, keep <= 0.6: paper+least_squares keeps more than paper, points", 2.23, 1.68, 2.78),
        Measured(
            "optin",
            "vit-fashion-mnist, keep <= 0.6: paper+least_squares keeps more than paper, points",
            1.99,
            1.81,
            2.16,
        ),
        Measured(
            "optin", "minilm-text, keep <= 0.6: paper+least_squares keeps more than paper, points", 2.68, 1.71, 3.65
        ),
    ),
    "rounds": (
        Measured("optin", "demo, keep <= 0.6: default keeps more than paper, points", 2.67, 2.05, 3.3),
        Measured("optin", "vit-fashion-mnist, keep <= 0.6: default keeps more than paper, points", 2.45, 2.23, 2.67),
        Measured("optin", "minilm-text, keep <= 0.6: default keeps more than paper, points", 3.31, 2.33, 4.29),
        Measured("optin_cnn", "resnet20: default keeps more than paper, points", 32.95, 32.22, 33.68),
    ),
    "worth": (
        Measured(
            "optin_worth",
            "in the time of keep_macs 0.5: worth: joint keeps more than worth: additive, points",
            -0.61,
            -1.06,
            -0.16,
        ),
        Measured(
            "optin_worth",
            "in the time of keep_macs 0.4: worth: joint keeps more than worth: additive, points",
            -0.48,
            -0.87,
            -0.09,
        ),
        Measured(
            "optin_worth",
            "in the time of keep_macs 0.3: worth: joint keeps more than worth: additive, points",
            1.24,
            0.85,
            1.63,
        ),
    ),
    "max_latency": (
        Measured("latency", "error of the predicted latency of held-out networks, mean %", 0.569, 0.371, 0.766),
        Measured("latency", "cuts for a max_latency that keep it when they are measured once more", 4),
    ),
    "search": (
        Measured("optin_scoring", "vit-fashion-mnist: fast: times faster than exact", 9.99),
        Measured("optin_scoring", "vit-fashion-mnist: fast: share of the mask in common", 0.9949),
        Measured(
            "optin_scoring", "vit-fashion-mnist: fast loses no more accuracy than exact, points", 0.09, -0.01, 0.19
        ),
    ),
}
