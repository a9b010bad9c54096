"""Where the best student errs: confusions, and samples that only it gets wrong. [no torch]"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.comparison import Row
from edgetl.page import markup
from edgetl.page.answers import Answers, Miss, answers, confusion, misses, pictures
from edgetl.page.facts import Facts
from edgetl.page.markup import Markup

MOST_LABELS = 20
"""Above this many labels the most frequent confusions are listed instead of a matrix."""

MOST_MISSES = 12


def confusions(facts: Facts) -> Markup:
    """Return the best student's confusion matrix, or its most frequent confusions."""
    row = facts.best()
    found = answers(facts.run, row) if row else None
    if row is None or found is None:
        return markup.tag("p", "Not measured: the answers on the test split are not in the run folder.")
    counts, labels = confusion(found), row.bundle.manifest["labels"]
    return _matrix(row, counts, labels) if len(labels) <= MOST_LABELS else _pairs(row, counts, labels)


def examples(facts: Facts) -> Markup:
    """Return samples that the best student gets wrong and the reference right."""
    row = facts.best()
    reference = next((r for r in facts.rows if r.reference), None)
    if row is None or reference is None or row.reference:
        return markup.tag("p", "There is no student to compare with the reference.")
    found, right = answers(facts.run, row), answers(facts.run, reference)
    if found is None or right is None:
        return markup.tag("p", "Not measured: the answers on the test split are not in the run folder.")
    chosen = misses(found, right, MOST_MISSES)
    if not chosen:
        return markup.tag("p", f"{row.title} gets no test sample wrong that the reference gets right.")
    return _gallery(facts, row, chosen, found, right)


def _gallery(facts: Facts, row: Row, chosen: Sequence[Miss], found: Answers, right: Answers) -> Markup:
    total = int(((found.said != found.y) & (right.said == right.y)).sum())
    labels = row.bundle.manifest["labels"]
    seen = pictures(facts.run, [miss.sample for miss in chosen])
    note = (
        f"{row.title} gets {total} test samples wrong that the reference gets right; here are those of whose wrong "
        "answer it is surest, as the network sees them after resizing. Numbers are rows of eval/test.npz, from 0."
    )
    figures = (_figure(miss, labels, seen.get(miss.sample)) for miss in chosen)
    return markup.join(markup.tag("p", note), markup.tag("div", *figures, class_="gallery"))


def _figure(miss: Miss, labels: Sequence[str], address: str | None) -> Markup:
    image = markup.tag("img", src=address, alt=f"test sample {miss.sample}", width=96) if address else None
    words = markup.join(
        markup.tag("span", f"row {miss.sample}", class_="muted"),
        markup.tag("span", f"is {labels[miss.label]}", class_="good"),
        markup.tag("span", f"called {labels[miss.said]}", class_="bad"),
    )
    return markup.tag("figure", image, markup.tag("figcaption", words))


def _matrix(row: Row, counts: NDArray[np.int64], labels: Sequence[str]) -> Markup:
    off = counts.copy()
    np.fill_diagonal(off, 0)
    worst = max(1, int(off.max()))
    sums = counts.sum(axis=1)

    def cell(true: int, said: int) -> Markup:
        count = int(counts[true, said])
        share = count / max(1, int(sums[true])) if true == said else count / worst
        kind = "right" if true == said else "wrong"
        return markup.tag("td", str(count) if count else "·", class_=kind, style=f"--heat:{45 * share:.0f}%")

    lines = [[label, *(cell(i, j) for j in range(len(labels)))] for i, label in enumerate(labels)]
    header = ("is \\ called", *labels)
    note = f"{row.title}: each line is what the samples of one label are called; {int(sums.sum())} test samples."
    return markup.join(markup.tag("p", note), markup.table("Confusion matrix", header, lines, "matrix"))


def _pairs(row: Row, counts: NDArray[np.int64], labels: Sequence[str]) -> Markup:
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:MOST_LABELS]
    pairs = [divmod(int(i), len(labels)) for i in order if off.flat[i]]
    sums = counts.sum(axis=1)
    lines = [[labels[i], labels[j], str(off[i, j]), f"{100 * off[i, j] / sums[i]:.1f} %"] for i, j in pairs]
    note = f"{row.title}: {len(labels)} labels, so the most frequent confusions stand here instead of a matrix."
    header = ("is", "called", "samples", "share of the label")
    return markup.join(markup.tag("p", note), markup.table("Most frequent confusions", header, lines))
