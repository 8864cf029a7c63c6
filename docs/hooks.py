"""What the site has that no file holds: a page an agent, the API by modules, and a map drawn from the imports."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import mkdocs.config.defaults
from mkdocs.structure.files import File, Files

import clenv
from clenv.fields import hints, words
from clenv.registry import agent_class, agent_names

ROOT = Path(__file__).parent.parent
PARTS = ("clenv", "clenv/world", "clenv/running", "clenv/evaluation", "clenv/bench", "clenv/testing", "clenv/avalanche",
         "agents", "scenarios")  # fmt: skip


def on_config(config: mkdocs.config.defaults.MkDocsConfig) -> None:
    """Put the pages of agents into the navigation, by families."""
    families: dict[str, list[dict[str, str]]] = {}
    for name in built_in():
        family = agent_class(name).__module__.split(".")[2]
        families.setdefault(family, []).append({name: f"agents/{name}.md"})
    part = next(item for item in config.nav or [] if "Agents" in item)
    part["Agents"] = ["agents/index.md", *({family: pages} for family, pages in sorted(families.items()))]


def on_files(files: Files, config: mkdocs.config.defaults.MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {f"agents/{name}.md": agent_page(name) for name in built_in()}
    made |= {"api/index.md": api_page(), "architecture-map.svg": import_map()}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Link the names of agents in the table of all of them to their pages."""
    del config, files
    if page.file.src_uri != "agents/index.md":
        return markdown
    known = set(built_in())

    def linked(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"[`{name}`]({name}.md)" if name in known else match.group(0)

    lines = []
    for line in markdown.splitlines():
        first, bar, rest = line[1:].partition("|")
        is_row = line.startswith("| `") and bool(bar)
        lines.append("|" + re.sub(r"`([\w-]+)`", linked, first) + bar + rest if is_row else line)
    return "\n".join(lines)


def built_in() -> list[str]:
    """Return the names of the agents that have a page."""
    return [name for name in agent_names() if agent_class(name).__module__.startswith("clenv.agents.")]


def agent_page(name: str) -> str:
    """Return what there is to know of an agent: its paper, its claims, its hyperparameters, and its code."""
    cls = agent_class(name)
    module = inspect.getmodule(cls)
    claims = {
        "unlearning": f"{cls.unlearning.name} in general; each receipt states its own level",
        "must be told the task": cls.needs_task_labels,
        "learns": ", ".join({"cross_entropy": "classification", "mse": "regression"}[loss] for loss in cls.losses),
        "old tasks keep their bits": "yes" if cls.forgetting_free else "not claimed",
        "grows with the number of tasks": "yes" if cls.grows else "no",
        "requests commute": "yes" if cls.commutes else "not claimed",
        "seeds learn together (herds)": "yes" if "herds" in vars(cls) and cls.herds else "no",
    }
    rows = [f"| {what} | {value} |" for what, value in claims.items()]
    example = f"```python\nagent = clenv.make_agent({name!r}, env)\n```"
    return "\n".join(
        [
            f"# `{name}`",
            "",
            marked(inspect.getdoc(module) or ""),
            "",
            "| claim | |",
            "| --- | --- |",
            *rows,
            "",
            f"`clenv check agent {name}` tests them. From the shell: `clenv run SCENARIO {name} --help`.",
            "",
            example,
            "",
            "## Hyperparameters",
            "",
            hyperparameters(cls.Hyperparameters),
            "",
            "## The code",
            "",
            f"::: {cls.__module__}.{cls.__qualname__}",
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
            "      heading_level: 3",
            "",
        ]
    )


def marked(text: str) -> str:
    """Return a docstring as Markdown."""
    return text.replace("``", "`")


def hyperparameters(cls: type[Any]) -> str:
    """Return a table of the fields of a dataclass: name, what it takes, default, meaning."""
    known = fields(cls)
    if not known:
        return "It has none."
    said, kinds = meanings(cls), hints(cls)
    rows = ["| name | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for field in known:
        default = "" if field.default is MISSING else f"`{field.default!r}`"
        cells = [f"`{field.name}`", words(kinds[field.name]), default, marked(said.get(field.name, ""))]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def meanings(cls: type[Any]) -> Mapping[str, str]:
    """Return what stands below each field of a dataclass, of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def api_page() -> str:
    """Return the public names, by the modules that they live in."""
    modules: dict[str, list[str]] = {}
    for name in clenv.__all__:
        item = getattr(clenv, name)
        if not inspect.ismodule(item):
            modules.setdefault(item.__module__, []).append(name)
    lines = ["# API", "", "All that `import clenv` offers, and promises to keep, by the module that it lives in.", ""]
    for module in sorted(modules):
        lines += [f"## `{module}`", ""]
        for name in modules[module]:
            lines += [f"::: {module}.{name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


# The map


def import_map() -> str:
    """Draw which part of the code imports which, from the imports themselves."""
    arrows = sorted({(part, other) for part in PARTS for other in imported_by(part) if other != part})
    levels = {
        "agents": (1, 0), "scenarios": (5, 0), "clenv/bench": (0, 1), "clenv/testing": (2, 1),
        "clenv/avalanche": (4, 1), "clenv/evaluation": (1, 2), "clenv/running": (3, 2), "clenv": (2, 3),
        "clenv/world": (4, 3),
    }  # fmt: skip
    width, height, wide, tall = 980, 470, 130, 40
    place = {part: (30 + 155 * x, 30 + 115 * y) for part, (x, y) in levels.items()}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="a" markerWidth="9" markerHeight="7" refX="9" refY="3.5" orient="auto">',
        '<path d="M0 0L9 3.5L0 7z" fill="#888"/></marker></defs><g font-size="14">',
    ]
    for part, other in arrows:
        (x, y), (u, v) = place[part], place[other]
        start = (x + wide / 2, y + (tall if v > y else 0 if v < y else tall / 2))
        end = (u + wide / 2, v + (0 if v > y else tall if v < y else tall / 2))
        if v == y:
            start, end = (x + (wide if u > x else 0), start[1]), (u + (0 if u > x else wide), end[1])
        lines.append(
            f'<line x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}" stroke="#999" '
            'marker-end="url(#a)"/>'
        )
    for part, (x, y) in place.items():
        lines += [
            f'<rect x="{x}" y="{y}" width="{wide}" height="{tall}" rx="6" fill="#eef2ff" stroke="#3949ab"/>',
            f'<text x="{x + wide / 2}" y="{y + tall / 2 + 5}" text-anchor="middle" fill="#1a237e">{part}</text>',
        ]
    return "\n".join([*lines, "</g></svg>"])


def imported_by(part: str) -> set[str]:
    """Return the parts that modules of a part import."""
    folder = ROOT / part
    deep = part in {"agents", "scenarios"} or part.startswith("clenv/")
    found = set()
    for path in folder.rglob("*.py") if deep else folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found.update(part_of(name) for name in names if name.split(".")[0] == "clenv")
    return found & set(PARTS)


def part_of(module: str) -> str:
    """Return the part that a module belongs to."""
    words = module.split(".")
    if len(words) > 1 and words[1] in {"agents", "scenarios"}:
        return words[1]
    return f"clenv/{words[1]}" if len(words) > 1 and f"clenv/{words[1]}" in PARTS else "clenv"
