"""Where the time of every file goes, by module, and why it is slow. [no torch]"""

from __future__ import annotations

from edgetl.explain import explained
from edgetl.explain.explained import Explained, Part
from edgetl.measure import measurement
from edgetl.page import markup
from edgetl.page.facts import Facts
from edgetl.page.markup import Markup

BLOCKS = ("block or module", "ms", "share")
OPERATORS = ("operator", "kind", "input", "ms", "share")
MOST_CAUSES = 4


def layers(facts: Facts) -> Markup:
    """Return the time by module of every file that was explained, folded but for the best student's."""
    found = explained.of_run(facts.run)
    shown = [
        (row, one)
        for row in facts.rows
        for device in facts.devices
        if device and (one := found.get((measurement.identity(row.bundle.sums), device)))
    ]
    if not shown:
        command = markup.tag("code", "edgetl profile --explain")
        return markup.tag("p", "Time inside the files: not measured. ", command, " measures it.")
    best = facts.best()
    several = len({one.device for _, one in shown}) > 1
    return markup.join(
        markup.tag("p", "Under the runtime's own profiler, at one thread and batch 1, apart from the timed rounds."),
        *(
            markup.details(
                f"{facts.short(row)}{f' on {one.device}' if several else ''}: {one.call_ms:.3g} ms of CPU a call",
                _one(one),
                unfolded=row is best,
            )
            for row, one in shown
        ),
    )


def _one(one: Explained) -> Markup:
    lines = []
    for block, parts in explained.blocks(one.modules):
        lines.append(_line(block, parts))
        if len(parts) > 1:
            largest = sorted(parts, key=lambda part: -part.share)
            lines += [_line(_inside(explained.inner(part.module, block)), [part]) for part in largest]
    rest = one.nodes - len(one.operators)
    slowest = [[o.name, o.op, o.dtype, f"{o.ms:.3g}", bar(o.share)] for o in one.operators]
    caption = f"Slowest operators of {one.name}" + (f"; {rest} more are faster" if rest > 0 else "")
    return markup.join(
        _causes(one),
        markup.tag("p", explained.how(one)),
        markup.table(f"Time by module of {one.name}", BLOCKS, lines, kind="modules"),
        markup.details("Slowest operators, as the runtime calls them", markup.table(caption, OPERATORS, slowest)),
    )


def _line(name: str, parts: list[Part]) -> list[str]:
    return [name, f"{sum(part.ms for part in parts):.3g}", bar(sum(part.share for part in parts))]


def _inside(name: str) -> Markup:
    return markup.tag("span", name, class_="inner")


def _causes(one: Explained) -> Markup:
    if not one.causes:
        return markup.tag("p", "None of the usual causes of a slow file takes a noticeable share of the time.")
    told = (
        markup.tag("li", markup.tag("strong", cause.kind), f": {cause.says}. Fix: {cause.fix}.")
        for cause in one.causes[:MOST_CAUSES]
    )
    return markup.tag("ul", *told)


def bar(share: float) -> Markup:
    """Return the cell of a share of a whole."""
    inner = markup.tag("span", f"{100 * share:.1f} %", class_="bar", style=f"--share:{100 * share:.1f}%")
    return markup.tag("td", inner)
