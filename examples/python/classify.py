"""Classify files with a bundle that edgetl made. Needs `pip install edgetl` and nothing else; no torch.

python classify.py BUNDLE INPUT...      inputs: image, WAV or .npy files, or texts where the bundle reads text
python classify.py --golden BUNDLE      the bundle's own golden samples, one label a line
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import edgetl
from edgetl.bundle import open_bundle, read_golden
from edgetl.errors import BadInput, EdgetlError


def golden(bundle: str) -> list[str | Path | bytes]:
    raw = read_golden(open_bundle(Path(bundle))).raw
    if raw is None:
        raise BadInput("this bundle carries no raw samples", fix="give it inputs of your own")
    return list(raw)


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify files with a bundle that edgetl made.")
    parser.add_argument("bundle", help="the folder that holds manifest.json")
    parser.add_argument("inputs", nargs="*", help="image, WAV or .npy files, or texts")
    parser.add_argument("--golden", action="store_true", help="classify the bundle's own golden samples")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    try:
        with edgetl.load(options.bundle, threads=options.threads) as model:
            if options.golden:
                for prediction in model.predict(golden(options.bundle)):
                    print(prediction.label)
            for path, prediction in zip(options.inputs, model.predict(options.inputs), strict=True):
                print(f"{path}\t{prediction.label}\t{prediction.score:.1%}")
    except EdgetlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
