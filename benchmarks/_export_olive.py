"""Write the ONNX file that Olive makes of another one: `python _export_olive.py BASE SAMPLES FILE`.

The passes are those that `olive optimize --precision int8 --provider CPUExecutionProvider` schedules (Olive 0.13), with
training samples for calibration in place of its default, a corpus of texts. SAMPLES is an npz with arrays called
`<sample>/<input>`. It runs where olive-ai is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

from olive import run
from olive.data.registry import Registry


class Samples:
    """A dataset as Olive takes it: inputs, one a feed, and a label that nothing reads."""

    def __init__(self, path: str) -> None:
        feeds = defaultdict(dict)
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                sample, _, key = name.partition("/")
                feeds[int(sample)][key] = file[name][0]
        self.feeds = [feeds[i] for i in sorted(feeds)]

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        return self.feeds[index], 0


@Registry.register_dataset("training_samples")
def training_samples(path: str, **_: object) -> Samples:
    return Samples(path)


def main() -> None:
    base, samples, wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        passes = {
            "onnx_peephole_optimizer": {"type": "OnnxPeepholeOptimizer"},
            "onnx_static_quantization": {
                "type": "OnnxStaticQuantization",
                "precision": "int8",
                "quant_format": "QOperator",
                "data_config": "training",
            },
        }
        accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        data = {"name": "training", "load_dataset_config": {"type": "training_samples", "params": {"path": samples}}}
        run(
            {
                "input_model": {"type": "OnnxModel", "model_path": base},
                "passes": passes,
                "data_configs": [data],
                "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
                "target": "here",
                "cache_dir": f"{scratch}/cache",
                "output_dir": f"{scratch}/out",
                "log_severity_level": 3,
            }
        )
        (made,) = Path(scratch, "out").rglob("model.onnx")
        shutil.move(made, wanted)


if __name__ == "__main__":
    main()
