"""One page a verdict: tables for the terminal, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clenv.evaluation.course import Course
from clenv.evaluation.trio import Trio
from clenv.evaluation.ulira import Likelihood
from clenv.evaluation.verdict import Audit, Capacity, Cost, Gap, Verdict
from clenv.running.checkpoint import write_atomically
from clenv.running.table import size, table

METRICS = {
    "output_jsd": "outputs: JSD",
    "output_rms": "outputs: root mean square",
    "jsd": "features: JSD",
    "js_distance": "features: root of JSD",
    "cosine": "features: cosine",
    "euclidean": "features: Euclidean",
    "manhattan": "features: Manhattan",
    "cka": "features: 1 - CKA",
}
"""Names of the distances, for people."""

_LEGEND = """
Does nothing, never asked: the same agent with all requests withheld. Gap closed: 1 - agent / does nothing, here of the
outputs. JSD is in nats, at most 0.693; Euclidean and Manhattan are relative to the size of the reference's features.
Steps are minibatches; area (relearning) and online loss are sums of the loss over steps. Chance: where 95 % of guesses
lie; an attack that fails on the agent that was never asked is uninformative.
"""


def page(verdict: Verdict) -> str:
    """Return all that a verdict says, as text."""
    parts = [_head(verdict), _distances(verdict), _figures(verdict), _cost(verdict)]
    return "\n".join(part for part in parts if part)


def _head(verdict: Verdict) -> str:
    holds = "the claim HOLDS" if verdict.holds else "the claim FAILS"
    lines = [
        f"After step {verdict.step}: unlearn {', '.join(verdict.tasks) or 'what came back since'}",
        f"claimed {verdict.claimed.name}, measured {verdict.measured.name}: {holds}",
        *(f"  - {reason}" for reason in verdict.reasons),
        "leaks:" if verdict.leaks else "leaks: none found",
        *(f"  - {leak}" for leak in verdict.leaks),
    ]
    return "\n".join(lines) + "\n"


def _distances(verdict: Verdict) -> str:
    """Return the table of gaps; empty if no task is unlearned."""
    rows = [_gap(METRICS[metric], gap) for metric, gap in verdict.distances.items()]
    rows += [_gap(f"all tasks, {METRICS[metric]}", gap) for metric, gap in verdict.distances_all.items()]
    if verdict.parameters is not None:
        rows.append(_gap("parameters, relative", verdict.parameters))
    head = ["distance to never having seen", "agent", "does nothing", "other seed", "never trained", "gap closed"]
    return table([head, *rows]) if verdict.distances else ""


def _gap(name: str, gap: Gap) -> list[str]:
    return [name, *map(_number, (gap.main, gap.nothing, gap.seeds, gap.fresh)), _percent(gap.closed)]


def _figures(verdict: Verdict) -> str:
    rows: list[list[str]] = []
    trios = {
        "bit-identical parameters": verdict.identical,
        "accuracy on what was removed": verdict.accuracy,
        "the same through the head it had": verdict.retained_head,
    }
    rows += [_trio(name, trio, "") for name, trio in trios.items() if trio is not None and not math.isnan(trio.main)]
    rows += [_trio(f"the same by {n} examples a class", trio, "") for n, trio in verdict.prototypes.items()]
    if verdict.staying is not None:
        rows.append(_trio("membership AUC, tasks that remain", verdict.staying, ""))
    for name, attack in verdict.attacks.items():
        low, high = attack.auc_chance
        rows.append(_trio(f"membership AUC, {name}", attack.auc, f"chance {low:.2f}-{high:.2f}: {attack.verdict}"))
        low, high = attack.accuracy_chance
        rows.append(_trio(f"membership accuracy, {name}", attack.accuracy, f"chance {low:.2f}-{high:.2f}"))
    for name, again in verdict.relearning.items():
        note = f"ratio {_number(again.ratio)}, area {again.area:.2f}"
        rows.append(
            [f"steps to relearn {name}", again.words(again.steps), again.words(again.reference_steps), "", note]
        )
    return table([["", "agent", "never saw it", "never asked", ""], *rows])


def _trio(name: str, trio: Trio, note: str) -> list[str]:
    return [name, _number(trio.main), _number(trio.reference), _number(trio.full), note]


def _cost(verdict: Verdict) -> str:
    gained, saved = _number(verdict.accuracy_difference), _number(verdict.loss_difference)
    lines = [
        f"Since then, minus never asked: accuracy of the remaining tasks {gained}; summed online loss saved {saved}"
    ]
    if verdict.cost is not None:
        lines += _costs(verdict.cost)
    return "\n".join(lines) + "\n"


def _costs(cost: Cost) -> list[str]:
    """Return what a request cost, a sentence each: time and examples, memory, steps, capacity."""
    anew = f"{cost.retrain_seconds:.1f} s, {cost.retrain_samples} examples"
    off = "" if math.isnan(cost.overhead) else f"; {cost.overhead:.2f} times as with unlearning switched off"
    lines = [
        f"Unlearning: {1000 * cost.seconds:.1f} ms, {cost.samples} examples read; training anew: {anew}",
        f"Memory: {size(cost.bytes_freed)} freed, {size(cost.memory)} in use",
        f"A step takes {cost.slow_down:.2f} times as long as never asked, requests included{off}",
    ]
    return lines if math.isnan(cost.capacity.after) else [*lines, _capacity(cost.capacity)]


def _capacity(capacity: Capacity) -> str:
    """Return what was in use, and when what was freed could be used, and was."""
    shares = (
        f"Capacity in use: {_percent(capacity.before)} before, {_percent(capacity.after)} after, "
        f"{_percent(capacity.reference)} never having seen it"
    )
    if math.isnan(capacity.usable):
        return f"{shares}; nothing was freed"
    used = "not used again" if math.isnan(capacity.used) else f"used again after {capacity.used:.0f}"
    return f"{shares}; free after {capacity.usable:.0f} steps, {used}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def overview(audit: Audit) -> str:
    """Return one line a verdict, as a table, and what the figures mean."""
    head = ["after step", "tasks", "claimed", "measured", "claim", "leaks", "gap closed", "accuracy difference"]
    rows = [
        [
            str(verdict.step),
            ", ".join(verdict.tasks),
            verdict.claimed.name,
            verdict.measured.name,
            "holds" if verdict.holds else "FAILS",
            str(len(verdict.leaks)),
            _percent(next((gap.closed for name, gap in verdict.distances.items() if "output" in name), math.nan)),
            _number(verdict.accuracy_difference),
        ]
        for verdict in audit
    ]
    course = "" if audit.course is None else f"\n{course_page(audit.course)}"
    likelihoods = f"\n{likelihoods_page(audit.likelihoods)}" if audit.likelihoods else ""
    return table([head, *rows]) + _LEGEND + course + likelihoods


def likelihoods_page(likelihoods: Sequence[Likelihood]) -> str:
    """Return what shadow runs told, as text."""
    head = ["after step", "task", "through", "AUC", "by chance", "TPR at 1 %", "at 5 %", "epsilon >=", "this run", ""]
    rows = [
        [
            str(each.step),
            each.task,
            each.through,
            f"{each.auc:.2f}",
            f"{0.5 - each.half:.2f}-{0.5 + each.half:.2f}",
            *(f"{rate:.2f}" for rate in each.tpr.values()),
            f"{each.epsilon:.2f}",
            f"{each.score:+.1f}",
            "leaks" if each.leaks else "passed",
        ]
        for each in likelihoods
    ]
    return (
        "Likelihood ratios of single examples (U-LiRA)\n"
        + table([head, *rows])
        + f"\nOf {likelihoods[0].shadows} runs of other seeds that unlearned and as many that never saw, each told by\n"
        "the others. This run: summed log ratio, above 0 it is taken for one that saw. Population attacks, above, are\n"
        "the weakest of all.\n"
    )


def course_page(course: Course) -> str:
    """Return what was seen over the whole stream, as text."""
    tasks = [
        [task, *(_number(value) for value in course.relapse(task)), _number(course.reversal(task))]
        for task in course.tasks()
    ]
    counts = [[str(count), *map(_number, differences)] for count, *differences in course.erosion()]
    verdict = "it ruins what it keeps" if course.ruins else "it keeps what remains"
    return (
        "Over the whole stream\n"
        + table([["removed task", "relapse: largest", "last", "reversal"], *tasks])
        + "\n"
        + table([["tasks removed", "accuracy on the rest, minus the reference's", "minus never asked"], *counts])
        + f"\nErosion: {verdict}. Relapse: rise, since its removal, of a task's accuracy above that of an agent that\n"
        "never saw it, through the head that an attacker kept. Reversal: its largest rise by a later request.\n"
    )


# Pictures


def draw(verdict: Verdict, path: Path) -> None:
    """Draw a verdict's distances and what attackers find, and save the picture atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    distances, attacks = figure.subplots(1, 2)
    mark = "holds" if verdict.holds else "FAILS"
    figure.suptitle(
        f"After step {verdict.step}: {', '.join(verdict.tasks)} unlearned; claimed {verdict.claimed.name}, "
        f"measured {verdict.measured.name}: {mark}"
    )
    _draw_distances(verdict.distances, distances)
    _draw_attacks(verdict, attacks)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw_distances(gaps: Mapping[str, Gap], axes: Any) -> None:
    """Draw each distance as a share of doing nothing."""
    known = {metric: gap for metric, gap in gaps.items() if gap.nothing > 0}
    styles = {
        "main": ("o", "black", "agent"),
        "seeds": ("|", "C0", "other seed"),
        "fresh": ("x", "C1", "never trained"),
    }
    for name, (marker, color, label) in styles.items():
        places = [getattr(gap, name) / gap.nothing for gap in known.values()]
        axes.scatter(places, range(len(places)), marker=marker, color=color, label=label, s=60, zorder=3)
    axes.axvline(0, color="grey", linewidth=1)
    axes.axvline(1, color="red", linewidth=1, linestyle=":", label="does nothing")
    axes.set_yticks(range(len(known)), [METRICS[metric] for metric in known])
    axes.invert_yaxis()
    axes.set_xlabel("distance to never having seen, as a share of doing nothing")
    axes.legend(fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_attacks(verdict: Verdict, axes: Any) -> None:
    """Draw accuracies and attacks of the three agents."""
    found = {"accuracy": verdict.accuracy, "accuracy,\nkept head": verdict.retained_head}
    bars = {name: trio for name, trio in found.items() if trio is not None}
    bars.update({f"AUC,\n{name}": attack.auc for name, attack in verdict.attacks.items()})
    for shift, (name, label) in enumerate(
        {"main": "agent", "reference": "never saw it", "full": "never asked"}.items()
    ):
        places = [place + 0.27 * (shift - 1) for place in range(len(bars))]
        axes.bar(places, [getattr(trio, name) for trio in bars.values()], width=0.25, label=label)
    axes.axhline(0.5, color="grey", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(bars)), list(bars), fontsize="small")
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_course(course: Course, path: Path) -> None:
    """Draw what was seen over the whole stream, and save the picture atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    removed, rest = figure.subplots(1, 2)
    for number, task in enumerate(course.tasks()):
        removed.plot(*zip(*course.of(task), strict=True), marker=".", color=f"C{number}", label=task)
    removed.axhline(0, color="grey", linewidth=1)
    removed.set_title("removed tasks: accuracy minus the reference's")
    steps = [look.step for look in course.looks]
    for name, label in {"main": "agent", "reference": "never saw it", "full": "never asked"}.items():
        rest.plot(steps, [getattr(look.remaining, name) for look in course.looks], marker=".", label=label)
    rest.set_title("tasks that remain: accuracy")
    for axes in (removed, rest):
        for look in course.looks:
            if look.asked:
                axes.axvline(look.step, color="grey", linewidth=1, linestyle=":")
        axes.set_xlabel("step; dotted: requests")
        axes.legend(fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def save(audit: Audit, folder: Path) -> list[Path]:
    """Write ``audit.json`` into a run's folder, and a picture of each verdict into its folder ``audit``.

    Returns:
        The pictures.
    """
    place = folder / "audit"
    place.mkdir(exist_ok=True)
    pictures = []
    for verdict in audit:
        pictures.append(place / f"step-{verdict.step}.png")
        draw(verdict, pictures[-1])
    if audit.course is not None:
        pictures.append(place / "course.png")
        draw_course(audit.course, pictures[-1])
    audit.save(folder / "audit.json")
    return pictures
