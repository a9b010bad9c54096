"""The flags and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeName = Annotated[str, typer.Argument(help="a recipe's file, or the name of a shipped one")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="a recipe's file, or the name of a shipped one")]
Out = Annotated[Path | None, typer.Option("--out", help="run folder (default: runs/<name>)")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="override: steps.optin.keep_macs=0.5; repeatable")]
Seed = Annotated[int | None, typer.Option("--seed", help="in place of the recipe's seed")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be made, and make nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="more of the log")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="only warnings and errors")]
Plugins = Annotated[Path | None, typer.Option("--plugins", help="folder with methods/, families/ ... of your own")]
Judged = Annotated[bool, typer.Option("--judge/--no-judge", help="exit 3 when a gate or budget is missed")]
DeviceName = Annotated[
    str, typer.Option("--device", help="a name of `edgetl devices list`, a device file, or ssh://user@host")
]
RunFolder = Annotated[Path | None, typer.Argument(help="a run, bundle or saved network (default: the newest run)")]
ModeName = Annotated[str, typer.Option("--mode", help="quick (seconds), standard (minutes) or certify (longer)")]
Against = Annotated[Path | None, typer.Option("--against", help="compare with a measurement file of another run")]
Throughput = Annotated[bool, typer.Option("--throughput", help="items per second too, at batches 1, 2, 4 ...")]
Baseline = Annotated[
    Path | None, typer.Option("--baseline", help="bundle to compare with (default: the reference, or the first bundle)")
]
MeasurementsOut = Annotated[
    Path | None, typer.Option("--out", help="keep measurements of bundles here; those of a run are kept in its folder")
]
Limit = Annotated[str | None, typer.Option("--limit", help="a smaller device: memory=512MB,cpus=1")]
Raw = Annotated[bool, typer.Option("--raw", help="fetch the samples of another machine too; this one's are kept")]
Attach = Annotated[str | None, typer.Option("--attach", help="collect a run whose link to the device was lost")]
Explain = Annotated[bool, typer.Option("--explain", help="where the time goes too, by module, and why it is slow")]
ExporterName = Annotated[
    Literal["torch", "optimum"],
    typer.Option("--exporter", help="what writes the ONNX of uncut networks of transformers: torch, or optimum"),
]
DebugParity = Annotated[
    bool,
    typer.Option("--debug-parity", help="export nothing; name the first module of each file whose answer is wrong"),
]
