"""The command line: parse, call one function, print. [no torch, no logic]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgetl import console, ranks
from edgetl.cli_flags import (
    Against,
    AsJson,
    Attach,
    Baseline,
    DebugParity,
    DeviceName,
    DryRun,
    Explain,
    ExporterName,
    Judged,
    Limit,
    MeasurementsOut,
    ModeName,
    Out,
    Plugins,
    Quiet,
    Raw,
    RecipeName,
    RecipeOption,
    RunFolder,
    Seed,
    Sets,
    Throughput,
    Verbose,
)
from edgetl.cli_lists import GROUPS
from edgetl.errors import EXIT_CODES, EdgetlError

app = typer.Typer(
    help="Turn a large pretrained backbone into a compact student that keeps a budget in milliseconds and megabytes.",
    epilog=EXIT_CODES, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)


@app.command()
def run(recipe: RecipeName, out: Out = None, sets: Sets = None, seed: Seed = None, dry_run: DryRun = False,
        device: DeviceName = "local", as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
        plugins: Plugins = None) -> None:  # fmt: skip
    """Make the whole recipe: compress, export, verify, profile, report. A stopped run continues where it was."""
    console.start(verbose, quiet, plugins)
    from edgetl.recipe.load import named
    from edgetl.stages.run import run_stages

    path, overrides, folder = named(recipe, sets or (), seed, out)
    if dry_run:
        return _dry_run(path, overrides, folder, as_json)
    flags = ["-v"] if verbose else ["-q"] if quiet else []
    if code := run_stages(path, folder, overrides, flags, device):
        raise typer.Exit(code)
    return _report([folder], as_json) if ranks.first() else None


@app.command()
def compress(recipe: RecipeOption, out: Out = None, sets: Sets = None, seed: Seed = None, dry_run: DryRun = False,
             as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
             plugins: Plugins = None) -> None:  # fmt: skip
    """Run the steps of a recipe on every branch, and save the networks."""
    console.start(verbose, quiet, plugins)
    from edgetl.recipe.load import named

    path, overrides, folder = named(recipe, sets or (), seed, out)
    if dry_run:
        return _dry_run(path, overrides, folder, as_json)
    from edgetl.recipe.read import read
    from edgetl.stages.compress import compress as stage

    made = stage(read(path, overrides), folder)
    return console.show_paths("networks", made, folder, as_json) if ranks.first() else None


@app.command()
def merge(base: Annotated[str, typer.Argument(help="the backbone's folder or hub id, or a saved network's folder")],
          adapters: Annotated[list[Path], typer.Argument(help="peft adapter folders, merged in this order")],
          out: Annotated[Path, typer.Option("--out", help="folder of the merged network")] = Path("merged"),
          labels: Annotated[str | None, typer.Option(help="class names, with commas between")] = None,
          as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
          plugins: Plugins = None) -> None:  # fmt: skip
    """Fold adapters that were trained elsewhere into their backbone."""
    console.start(verbose, quiet, plugins)
    from edgetl.stages.merge import merge as stage

    names = tuple(part.strip() for part in labels.split(",")) if labels else None
    console.show_paths("networks", {"merged": stage(base, adapters, out, names)}, out, as_json)


@app.command()
def export(where: RunFolder = None,
           target: Annotated[list[str] | None, typer.Option(help="only these targets; repeatable")] = None,
           exporter: ExporterName = "torch", debug_parity: DebugParity = False, judged: Judged = True,
           as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
           plugins: Plugins = None) -> None:  # fmt: skip
    """Export the reference and every student of a run, or a merged network, and check each file against torch."""
    console.start(verbose, quiet, plugins)
    from edgetl.stages.export import export as stage
    from edgetl.stages.export import judge
    from edgetl.stages.run import newest

    folder = newest(where)
    if debug_parity:
        return _debug_parity(folder, as_json)
    made = {f"{p.parent.name} {p.name}": p for p in stage(folder, tuple(target or ()), exporter)}
    console.show_paths("bundles", made, folder, as_json)
    return judge(folder) if judged else None


@app.command()
def verify(where: RunFolder = None,
           data: Annotated[Path | None, typer.Option(help="eval/test.npz of the run: repeat its accuracy")] = None,
           threads: Annotated[int, typer.Option(min=1, help="threads of the runtime")] = 1,
           as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
           plugins: Plugins = None) -> None:  # fmt: skip
    """Repeat the golden samples of a bundle, or of every bundle of a run, on this device, without torch."""
    console.start(verbose, quiet, plugins)
    from edgetl.stages.run import bundles, newest
    from edgetl.stages.verify import CELLS, cells
    from edgetl.stages.verify import verify as stage

    checks = [stage(folder, data, threads) for folder in bundles(newest(where))]
    if as_json:
        console.show_json({"checks": [c.to_json() for c in checks]})
    else:
        console.show(console.rows("verified", CELLS, [cells(c) for c in checks]))


@app.command()
def profile(where: Annotated[list[Path] | None, typer.Argument(help="a run, or bundles (default: newest run)")] = None,
            device: DeviceName = "local", mode: ModeName = "standard", baseline: Baseline = None,
            throughput: Throughput = False, against: Against = None, out: MeasurementsOut = None,
            limit: Limit = None, attach: Attach = None, raw: Raw = False, explain: Explain = False,
            gate: Annotated[str | None, typer.Option(help="limits: p90_ms=12,peak_mb=200")] = None,
            fresh: Annotated[bool, typer.Option("--fresh", help="measure again what is measured")] = False,
            judged: Judged = True, as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
            plugins: Plugins = None) -> None:  # fmt: skip
    """Measure latency, memory and cold start on a device, interleaved, in processes of their own, without torch."""
    console.start(verbose, quiet, plugins)
    from edgetl.explain import explained
    from edgetl.measure import measured
    from edgetl.measure.measurement import read
    from edgetl.measure.rounds import mode_named
    from edgetl.stages.explain import explain as stage
    from edgetl.stages.profile import Request, judge, profile_all
    from edgetl.stages.run import newest

    folders, old = where or ([] if attach else [newest(None)]), read(against) if against else None
    request = Request(mode_named(mode), 0, baseline, out, gate, fresh, throughput, limit, attach, raw)
    reasons = stage(folders, device, out) if explain else []
    measurements = profile_all(folders, device, request)
    ratios = measured.against(measurements, old) if old else []
    if as_json:
        found = {"measurements": [m.to_json() for m in measurements]}
        found |= {"explained": [reason.model_dump(mode="json") for reason in reasons]} if explain else {}
        console.show_json(found | ({"against": [one.to_json() for one in ratios]} if old else {}))
    else:
        console.show(measured.table(measurements))
        for reason in reasons:
            console.show(explained.table(reason))
            print(explained.text(reason))
        if ratios:
            console.show(console.rows("across runs", measured.ACROSS, [one.cells() for one in ratios]))
    for one in ratios:
        one.require()
    if judged:
        judge(folders, measurements, gate)


@app.command()
def report(runs: Annotated[list[Path] | None, typer.Argument(help="run folders (default: the newest)")] = None,
           as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Compare the reference and all students, judge the gates, write report.md, report.json and report.html."""
    console.start(verbose, quiet, None)
    from edgetl.stages.run import newest

    _report(runs or [newest(None)], as_json)


@app.command()
def doctor(target: Annotated[str | None, typer.Option(help="look closely at one target")] = None,
           as_json: AsJson = False) -> None:  # fmt: skip
    """Say what this machine and its packages can do, and the one line that mends what they cannot."""
    console.start(verbose=False, quiet=False, plugins=None)
    from edgetl.stages.doctor import doctor as examine

    found = examine(target)
    if as_json:
        console.show_json({"findings": [f.to_json() for f in found]})
    else:
        columns = ("what", "found", "state", "fix")
        console.show(console.rows("doctor", columns, [(f.what, f.found, f.state, f.fix) for f in found]))
    if any(f.state == "broken" for f in found):
        raise typer.Exit(4)


def _debug_parity(folder: Path, as_json: bool) -> None:
    from edgetl.stages.debug_parity import COLUMNS, debug_parity, require

    found = debug_parity(folder)
    if as_json:
        console.show_json({"parity": [one.to_json() for one in found]})
    else:
        console.show(console.rows("first module whose answer is wrong", COLUMNS, [one.cells() for one in found]))
    require(found)


def _dry_run(path: Path, sets: list[str], folder: Path, as_json: bool) -> None:
    from edgetl.recipe.read import read
    from edgetl.stages.forecast import forecast

    seen = forecast(read(path, sets), folder)
    if as_json:
        console.show_json(seen.to_json())
    else:
        console.show(console.rows(f"would be made in {folder}", ("step", "branch", "state", "minutes"), seen.lines()))
        print(seen.summary())


def _report(folders: list[Path], as_json: bool) -> None:
    from edgetl.stages.report import report as stage

    reports = [stage(folder) for folder in folders]
    if as_json:
        console.show_json({"reports": [one.to_json() for one in reports]})
    for one in reports:
        if not as_json:
            console.show(one.table())
    for one in reports:
        one.judge()


def main() -> None:
    """Run the command line and exit with the documented code."""
    from edgetl.stages.run import end_with_parent

    staged = end_with_parent()
    console.report_bugs()
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = console.INTERRUPTED
    except (EdgetlError, ImportError, MemoryError, OSError, RuntimeError) as error:
        code = console.failed(error)
    except console.USAGE_ERROR as error:
        code = console.usage(error)
    if code == console.INTERRUPTED and not staged:  # typer makes this code of Ctrl-C
        console.interrupted()
    sys.exit(code or 0)
