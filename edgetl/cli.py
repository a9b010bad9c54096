"""The command line: parse, call one function, print. [no torch, no logic]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgetl import console
from edgetl.errors import EXIT_CODES, EdgetlError

app = typer.Typer(
    help="Turn a large pretrained backbone into a compact student that keeps a budget in milliseconds and megabytes.",
    epilog=EXIT_CODES, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
recipes_app = typer.Typer(help="The shipped recipes, and whether a recipe is right.", no_args_is_help=True)
devices_app = typer.Typer(help="The devices that recipes may name budgets for.", no_args_is_help=True)
runs_app = typer.Typer(help="The run folders below ./runs.", no_args_is_help=True)
methods_app = typer.Typer(help="The methods that a recipe's steps may use.", invoke_without_command=True)
for _name, _sub in (("recipes", recipes_app), ("devices", devices_app), ("runs", runs_app), ("methods", methods_app)):
    app.add_typer(_sub, name=_name)

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
DeviceName = Annotated[str, typer.Option("--device", help="a device of `edgetl devices list`, or a device file")]
RunFolder = Annotated[Path | None, typer.Argument(help="a run, bundle or saved network (default: the newest run)")]


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
    return _report([folder], as_json)


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

    return console.show_paths("networks", stage(read(path, overrides), folder), folder, as_json)


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
           judged: Judged = True, as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
           plugins: Plugins = None) -> None:  # fmt: skip
    """Export the reference and every student of a run, or a merged network, and check each file against torch."""
    console.start(verbose, quiet, plugins)
    from edgetl.stages.export import export as stage
    from edgetl.stages.export import judge
    from edgetl.stages.run import newest

    folder = newest(where)
    console.show_paths("bundles", {p.parent.name: p for p in stage(folder, tuple(target or ()))}, folder, as_json)
    if judged:
        judge(folder)


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
            device: DeviceName = "local",
            gate: Annotated[str | None, typer.Option(help="limits: p90_ms=12,peak_mb=200")] = None,
            fresh: Annotated[bool, typer.Option("--fresh", help="measure again what is measured")] = False,
            judged: Judged = True, as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False,
            plugins: Plugins = None) -> None:  # fmt: skip
    """Measure latency, memory and cold start on a device, interleaved, in processes of their own, without torch."""
    console.start(verbose, quiet, plugins)
    from edgetl.stages.profile import judge, profile_all, table
    from edgetl.stages.run import newest

    folders = where or [newest(None)]
    measurements = profile_all(folders, device, fresh=fresh, gate=gate)
    if as_json:
        console.show_json({"measurements": [m.to_json() for m in measurements]})
    else:
        console.show(table(measurements))
    if judged:
        judge(folders, measurements, gate)


@app.command()
def report(runs: Annotated[list[Path] | None, typer.Argument(help="run folders (default: the newest)")] = None,
           as_json: AsJson = False, verbose: Verbose = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Compare the reference and all students, judge the gates, write report.md and report.json."""
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


@recipes_app.command("list")
def recipes_list(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from edgetl import listing

    console.show_lines("recipes", ("name", "what it makes"), listing.recipes(), as_json)


@recipes_app.command("show")
def recipes_show(name: RecipeName) -> None:
    """Print a recipe."""
    from edgetl.recipe.load import find

    print(find(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("copy")
def recipes_copy(name: RecipeName, to: Annotated[Path, typer.Argument(help="the new file")]) -> None:
    """Copy a recipe, to change it."""
    from edgetl.listing import copy_recipe

    print(copy_recipe(name, to))


@recipes_app.command("check")
def recipes_check(names: Annotated[list[str] | None, typer.Argument(help="recipes (default: all shipped)")] = None,
                  sets: Sets = None, as_json: AsJson = False, plugins: Plugins = None) -> None:  # fmt: skip
    """Check recipes without running them: every error at once, and what the user still has to give."""
    console.start(verbose=False, quiet=False, plugins=plugins)
    from edgetl import listing

    lines = listing.check_recipes(names or (), sets or ())
    console.show_lines("recipes", ("recipe", "students", "still to give"), lines, as_json)


@devices_app.command("list")
def devices_list(as_json: AsJson = False) -> None:
    """List the shipped devices."""
    from edgetl import listing

    lines = listing.devices()
    console.show_lines("devices", ("name", "kind", "processor", "threads"), lines, as_json)


@devices_app.command("show")
def devices_show(name: Annotated[str, typer.Argument(help="a device; 'local' is this machine, probed now")]) -> None:
    """Print a device file."""
    from edgetl.listing import show_device

    print(show_device(name), end="")


@methods_app.callback()
def methods(context: typer.Context, as_json: AsJson = False) -> None:
    """List the methods."""
    if context.invoked_subcommand is None:
        from edgetl import listing

        lines = listing.methods()
        console.show_lines("methods", ("name", "what it does"), lines, as_json)


@methods_app.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="a method")], as_json: AsJson = False) -> None:
    """Print the fields of a method, their defaults and what they mean."""
    from edgetl import listing

    lines = listing.fields(name)
    console.show_lines("fields", ("field", "type", "default", "meaning"), lines, as_json)


@runs_app.command("list")
def runs_list(as_json: AsJson = False) -> None:
    """List the run folders below ./runs."""
    from edgetl import listing

    lines = listing.runs(Path("runs"))
    console.show_lines("runs", ("folder", "recipe", "students", "bundles", "MB"), lines, as_json)


@runs_app.command("rm")
def runs_rm(folder: Path, yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Delete a run folder."""
    from edgetl.listing import remove_run

    remove_run(folder, lambda: yes or (sys.stdin.isatty() and typer.confirm(f"delete {folder} and all in it?")))


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
