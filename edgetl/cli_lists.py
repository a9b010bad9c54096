"""The commands around the main ones: recipes, devices, methods and runs. [no torch, no logic]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgetl import console
from edgetl.cli_flags import AsJson, DeviceName, Plugins, Quiet, RecipeName, Sets, Verbose

DeviceFile = Annotated[Path | None, typer.Option("--out", help="the new device file (default: ./NAME.yaml)")]

recipes_app = typer.Typer(help="The shipped recipes, and whether a recipe is right.", no_args_is_help=True)
devices_app = typer.Typer(help="The devices that recipes may name budgets for.", no_args_is_help=True)
runs_app = typer.Typer(help="The run folders below ./runs.", no_args_is_help=True)
methods_app = typer.Typer(help="The methods that a recipe's steps may use.", invoke_without_command=True)
GROUPS = {"recipes": recipes_app, "devices": devices_app, "runs": runs_app, "methods": methods_app}


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


@devices_app.command("probe")
def devices_probe(out: DeviceFile = None,
                  name: Annotated[str, typer.Option("--name", help="what to call it")] = "local") -> None:  # fmt: skip
    """Write a device file for this machine; nothing is timed."""
    from edgetl.device_file import write_probed

    print(write_probed(out, name))


@devices_app.command("calibrate")
def devices_calibrate(device: DeviceName = "local", out: DeviceFile = None, as_json: AsJson = False,
                      verbose: Verbose = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Measure what this machine can do at best, for one to two minutes, and write it as a device file."""
    console.start(verbose, quiet, None)
    from edgetl.device import load_device
    from edgetl.device_file import free_place, write_calibrated
    from edgetl.stages.calibrate import calibrate, lines

    machine = load_device(device)
    path = free_place(out, machine.name)
    found = calibrate(machine)
    write_calibrated(found, path)
    if as_json:
        return console.show_json({"file": str(path), "device": found.model_dump(mode="json", by_alias=True)})
    return console.show_lines(f"written to {path}", ("quantity", "value", "95 %", "unit"), lines(found), False)


@devices_app.command("trust")
def devices_trust(host: Annotated[str, typer.Argument(help="user@host:port, or a device with an ssh link")],
                  as_json: AsJson = False) -> None:  # fmt: skip
    """Print the fingerprints of a device's ssh keys, to compare before you trust them."""
    from edgetl.trust import address, advice, fingerprints

    at = address(host)
    console.show_lines("keys", ("bits", "fingerprint", "kind"), fingerprints(at), as_json)
    print(advice(at), file=sys.stderr)


@methods_app.callback()
def methods(context: typer.Context, as_json: AsJson = False) -> None:
    """List the methods, and the losses that they can learn from."""
    if context.invoked_subcommand is None:
        from edgetl import listing

        lines = listing.methods()
        console.show_lines("methods", ("name", "kind", "what it does"), lines, as_json)


@methods_app.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="a method or a loss")], as_json: AsJson = False) -> None:
    """Print the fields of a method or loss, their defaults, what they mean, and what benchmarks say of them."""
    from edgetl import listing

    fields = (("field", "type", "default", "meaning"), listing.fields(name))
    measured = (("field", "benchmark", "result", "value"), listing.measured(name))
    console.show_tables({"fields": fields, "measured": measured}, as_json)


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
