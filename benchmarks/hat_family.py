"""What the agents of the HAT family cost: ``env.step(agent)`` against a hand-written loop of the same arithmetic.

The agents know 2, 10 and 40 tasks: a step must not cost more with more of them. Backups of AmnesiacHAT are left out:
each is one more network to train, for a task that may still be unlearned. A second table has the cost in steps of plain
training. Run it by ``python benchmarks/hat_family.py``; it takes three minutes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from by_hand import Rule, Times, hat, knowing, make_tasks, print_head, print_row

TARGET = 1.3
INPUTS, HIDDEN, BATCH = 64, (200, 200), 32
KNOWN = (2, 10, 40)
BLOCK, BLOCKS = 5, 160
LARGER = (256, 256)
IN_STEPS = {"hat": 1.4, "adahat": 1.6, "amnesiac-hat": 1.7}  # targets


class Case(NamedTuple):
    """An agent, its options, and how it treats the weights of other tasks."""

    name: str
    agent: str
    options: dict[str, Any]
    rule: Rule


CASES = (
    Case("`hat`", "hat", {}, "protect"),
    Case("`adahat`", "adahat", {}, "scale updates"),
    Case("`adahat`, gradients scaled", "adahat", {"scale": "grad", "alpha": 1e-6}, "scale gradients"),
    Case("`amnesiac-hat`", "amnesiac-hat", {}, "scale updates"),
    Case("`amnesiac-hat`, compensation by rate", "amnesiac-hat", {"compensation": "rate"}, "scale updates"),
    Case("`amnesiac-hat`, 200 examples kept a task", "amnesiac-hat", {"replay": 200}, "scale updates"),
)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = make_tasks(INPUTS, max(KNOWN) + 1, rows=500)
    print(f"Ratios; target: at most {TARGET}\n")
    print_head("agent", *(f"{known} tasks known" for known in KNOWN))
    for case in CASES:
        ratios = []
        for known in KNOWN:
            loops = {
                "hand": hat(INPUTS, HIDDEN, tasks[0], BATCH, case.rule),
                "world": knowing(case.agent, tasks[: known + 1], BATCH, hidden=HIDDEN, **case.options),
            }
            ratios.append(Times(loops, BLOCK, BLOCKS).ratio("world", "hand"))
        print_row(case.name, *(f"{ratio:.3f}" for ratio in ratios))
    print("\nIn steps of plain training, two tasks known, 64-256-256-10\n")
    print_head("agent", "plain steps", "target")
    for agent, target in IN_STEPS.items():
        worlds = {name: knowing(name, tasks[:3], BATCH, hidden=LARGER) for name in ("finetune", agent)}
        print_row(f"`{agent}`", f"{Times(worlds, BLOCK, BLOCKS).ratio(agent, 'finetune'):.2f}", f"{target}")


if __name__ == "__main__":
    main()
