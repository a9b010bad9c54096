"""Several processes train what one process trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

PROGRAM = """
import os, sys
from importlib import util
from pathlib import Path
import torch
from edgetl.examples import Augmentation
from edgetl.losses.labels import CrossEntropy
from edgetl.network.network import create, save
from edgetl.recipe.schema import Schedule
from edgetl.train.batches import Data
from edgetl.train.fit import fit
from edgetl.train.lesson import Term
spec = util.spec_from_file_location("tiny", sys.argv[1])
tiny = util.module_from_spec(spec)
spec.loader.exec_module(tiny)
torch.set_num_threads(1)
work = Path(sys.argv[2])
data = Data(tiny.tiny_prepared(work, 62), (Augmentation(op="shift", pixels=1),))  # the last batch holds one sample
net = create("hf_vit", tiny.SIZES, tiny.LABELS, 0)
fit(net, data, [Term(CrossEntropy())], Schedule(epochs=2, lr=2e-3, batch=20), 3, work)
save(net, work / ("rank" + os.environ.get("RANK", "")), {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_one_process(tmp_path, ranks):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    fixtures = str(Path(__file__).parents[1] / "contract" / "conftest.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    for start in ([], launch):
        command = [sys.executable, *start, str(program), fixtures, str(tmp_path)]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    one = load_file(tmp_path / "rank" / "model.safetensors")
    for rank in range(ranks):
        other = load_file(tmp_path / f"rank{rank}" / "model.safetensors")
        assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-4
