"""Which extra brings a package that is not there. [no torch, imports nothing]"""

from __future__ import annotations

from collections.abc import Mapping

MODULES: Mapping[str, tuple[str, ...]] = {
    "compress": (
        "torch",
        "transformers",
        "huggingface_hub",
        "peft",
        "accelerate",
        "safetensors",
        "onnx",
        "onnxscript",
        "sklearn",
    ),
    "data": ("pyarrow", "datasets"),
    "prune": ("torch_pruning",),
    "optimum": ("optimum",),
    "openvino": ("openvino", "nncf"),
    "trt": ("tensorrt",),
    "trt-rtx": ("tensorrt_rtx",),
    "gpu": ("pynvml",),
    "report": ("plotly",),
}
"""The modules that each extra installs, as they are imported."""


def install(module: str) -> str | None:
    """Return the command that installs a missing module, or None where no extra of ours holds it."""
    top = module.partition(".")[0]
    return next((f'pip install "edgetl[{extra}]"' for extra, names in MODULES.items() if top in names), None)
