"""Write the ONNX file that optimum's exporter makes of a saved network: `python _export_optimum.py NETWORK FILE`.

It runs where `edgetl[optimum]` is installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from optimum.exporters.onnx import main_export

from edgetl.network.network import load

TASKS = {"hf_vit": "image-classification", "hf_bert": "text-classification"}


def main() -> None:
    net = load(Path(sys.argv[1]))
    if not hasattr(net.module, "save_pretrained"):
        sys.exit(f"no architecture of transformers: {type(net.module).__name__}")
    with tempfile.TemporaryDirectory() as scratch:
        theirs, made = Path(scratch) / "theirs", Path(scratch) / "onnx"
        net.module.save_pretrained(theirs)
        main_export(str(theirs), made, task=TASKS[net.family.name], do_validation=False)
        (made / "model.onnx").rename(sys.argv[2])


if __name__ == "__main__":
    main()
