"""The report's page: what stands in it, read by a parser; `test_report_in_chromium.py` opens it in a browser."""

import html
import importlib
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import clenv
from clenv.bench.figures import chart, heat_map, over_steps, spark
from clenv.bench.gather import gather
from clenv.bench.standings import rank
from clenv.evaluation.verdict import Audit, Capacity, Cost, Verdict
from clenv.running.folder import read
from clenv.running.table import size

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Every element with its attributes and text; refuses tags that do not match."""

    def __init__(self, file):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.elements, self.open = [], []
        self.feed(self.text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())]


def verdict(*, holds, reasons=(), logits=0.0):
    levels = clenv.Exactness
    measured = levels.EXACT if holds else levels.INTERFACE
    answers = {"blob-1": torch.tensor([[[logits, 0.0]], [[logits, 0.0]]])}
    return Verdict(
        step=50,
        tasks=("blob-1",),
        remaining=("blob-0", "blob-2"),
        claimed=levels.EXACT,
        measured=measured,
        holds=holds,
        reasons=tuple(reasons),
        cost=Cost(0.002, 0, 1200, 4000, 2.5, 600, 1.1, Capacity(0.5, 0.25, 0.25, 0, 9), 1.25),
        answers=answers,
    )


@pytest.fixture(scope="module")
def eventful(played, tmp_path_factory):
    """A bench with a failed, a diverged and an unfinished run, and with audits."""
    import bench_folder

    place = shutil.copytree(played, tmp_path_factory.mktemp("eventful") / "bench")
    bench_folder.fail(place / "runs/near-tiny-1")
    bench_folder.play(
        place,
        "near",
        "tiny_world:tiny/Blobs-v0",
        bench_folder.SCENARIOS["near"],
        "boom",
        "tiny_world:Tiny",
        {"explode_at": 20},
        0,
    )
    shutil.rmtree(place / "runs/far-tiny-lr=0.5-1")
    content = read(place / "runs/far-blind-1")
    (place / "runs/far-blind-1/run.json").write_text(json.dumps({**content, "state": "running"}))
    Audit([verdict(holds=False, reasons=["outputs of blob-0 changed"])]).save(place / "runs/near-tiny-0/audit.json")
    for seed in (0, 1):
        Audit([verdict(holds=True, logits=float(seed))]).save(place / f"runs/near-blind-{seed}/audit.json")
    return place


@pytest.fixture(scope="module")
def page(eventful):
    return Page(clenv.report(eventful))


def test_it_is_written_into_the_folder_and_the_same_twice(eventful, page):
    assert clenv.report(eventful) == eventful / "report.html"
    assert (eventful / "report.html").read_text(encoding="utf-8") == page.text
    assert len(page.text) < 400_000


def test_it_needs_no_network(page):
    for element in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert element.get(name, "#").startswith(("#", "data:")), element
    assert "@import" not in page.text
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page.text))
    outside = set(re.findall(r"https?://[\w./]+", page.text))
    assert outside <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, not places


def test_names_are_unique_and_lead_somewhere(page):
    names = [element["id"] for element in page.elements if "id" in element]
    assert len(names) == len(set(names))
    links = [element[name] for element in page.elements for name in ("href", "xlink:href") if name in element]
    links += re.findall(r"url\((#[^)]*)\)", page.text)
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)


def test_every_figure_has_a_text_alternative(page):
    pictures = [e for e in page.all("svg") if e.get("aria-hidden") != "true"] + page.all("img")
    assert len(pictures) > 20
    for picture in pictures:
        text = picture.get("aria-label") or picture.get("alt")
        assert text
        assert picture["tag"] == "img" or picture["role"] == "img"
    (stream, _) = (e["aria-label"] for e in page.all("svg") if e.get("aria-label", "").startswith("Online loss over"))
    assert "80 steps of near, seed 0" in stream
    assert "Made permanent: blob-0 at step " in stream
    assert "Unlearned: blob-1 at step 51" in stream


def test_figures_take_their_colours_from_the_page(page):
    plots = re.findall(r'<svg [^>]*class="plot".*?</svg>', page.text)
    assert len(plots) == 3  # performance profiles, and a stream of each scenario
    for plot in plots:
        assert not re.findall(r"#[0-9a-f]{6}", plot)
        assert "var(--c0)" in plot
        assert "currentColor" in plot


def test_the_leaderboard_is_the_ranking(eventful, page):
    ranking = rank(gather(eventful))
    table = page.text.split("<table")[1]
    rows = re.findall(r'<tr data-agent="([^"]*)".*?</tr>', table, re.DOTALL)
    assert [html.unescape(row) for row in rows] == [s.agent for s in ranking.standings]
    for standing in ranking.standings:
        if math.isfinite(standing.loss.value):
            assert f'data-v="{standing.loss.value}"' in table
    assert "✗ 1 of 1 fail" in table
    assert "✓ 2 hold" in table
    assert '<span class="badge failed">1 failed</span>' in table
    assert '<span class="badge diverged">1 diverged</span>' in table
    assert '<span class="badge unfinished">1 unfinished</span>' in table
    assert '<span class="badge missing">1 missing</span>' in table
    assert "1 not begun" in page.text


def test_every_run_has_its_section_and_its_command(eventful, page):
    runs = gather(eventful).runs
    sections = page.all("details", class_="run")
    assert [s["data-state"] for s in sections] == [run.state for run in runs]
    for run, section in zip(runs, sections, strict=True):
        assert run.job["command"] in section["text"]
        assert f"{run.agent} on {run.scenario}, seed {run.seed}" in section["text"]
    failed = next(s for s in sections if s["data-state"] == "failed")
    assert 'File "agent.py", line 7' in failed["text"]
    assert "the cat <b>sat</b> on the keyboard, at step 7, after 1.5 s" in failed["text"]
    assert "<b>sat" not in page.text
    diverged = next(s for s in sections if s["data-state"] == "diverged")
    assert "no longer finite at step 20" in diverged["text"]
    asked = next(s for s in sections if s["data-scenario"] == "near")
    assert "must be unlearned" in asked["text"]
    assert "halved" in asked["text"]
    (commands,) = page.all("table", id="commands")
    assert all(run.job["command"] in commands["text"] for run in runs)
    assert "clenv bench bench.toml" in page.text
    assert "a processor" in page.text


def test_verdicts_and_receipts(page):
    (verdicts,) = page.all("table", id="verdicts")
    assert verdicts["text"].count("✗ does not hold") == 1
    assert verdicts["text"].count("✓ holds") == 2
    pages = [part["text"] for part in page.all("details") if part["text"].startswith("All that was measured")]
    assert len(pages) == 3
    assert ": outputs of blob-0 changed" in pages[0].splitlines()[0]
    for sentence in ("1.25 times as with unlearning switched off", "free after 0 steps, used again after 9"):
        assert all(sentence in text for text in pages)
    (receipts,) = page.all("table", id="receipts")
    assert "blob-1" in receipts["text"]
    assert "interface" in receipts["text"]
    assert "claimed, not audited" in page.text


def test_what_unlearned_is_compared_over_seeds(eventful, page):
    """Two seeds whose agents equal their references: p = softmax(0, 0), q = softmax(1, 0); the other agent has one."""
    found = clenv.results(eventful, "groups")
    assert found.columns == ["scenario", "agent", "seeds", "ijsd", "ajsd", "js_ratio", "irr", "reason"]
    rows = {row[1]: row for row in found.fetchall()}
    assert set(rows) == {"tiny", "blind"}
    p, q = 0.5, 1 / (1 + math.exp(-1))
    m = (p + q) / 2
    js = 0.5 * (p * math.log(p / m) + (1 - p) * math.log((1 - p) / (1 - m)))
    js += 0.5 * (q * math.log(q / m) + (1 - q) * math.log((1 - q) / (1 - m)))
    assert rows["blind"][2:] == (2, pytest.approx(js), pytest.approx(js / 2), pytest.approx(0.5), 1, None)
    assert rows["tiny"][2:7] == (1, None, None, None, None)
    assert "one seed" in rows["tiny"][7]
    (table,) = page.all("table", id="groups")
    assert f"{js:.3f}" in table["text"]
    assert "one seed" in table["text"]


def test_what_agents_tell_of_themselves(page):
    cards = [e["text"] for e in page.all("figure", class_="card") if "weight" in e["text"]]
    assert len(cards) == 5  # tiny and tiny lr=0.5 on both scenarios, boom on one
    for card in cards:
        assert "50 %" in card  # capacity
        assert card.count("output 0") == 2  # a row of the picture, a line of a chart
        assert re.search(r"norm\s+\d", card)
    assert not any("blind" in card for card in cards)
    charts = [e["aria-label"] for e in page.all("svg") if e.get("aria-label", "").startswith("capacity")]
    assert "capacity from step 0 to 80, at the end: weight 50 %" in charts
    assert len([path for path in page.all("path") if path.get("d", "").startswith("M") and "stroke" in path]) > 20


def test_charts_by_hand():
    drawn = chart("drift", {"a": [(9, 0.0), (19, 2.0)], "b": [(19, 1.0)], "c": [(9, math.nan)]}, (0, 19))
    assert drawn["ends"] == ["0", "2"]
    assert drawn["steps"] == (0, 19)
    paths = [line["path"] for line in drawn["lines"]]
    assert paths == ["M152 90.0L320 0.0", "M320 45.0L320 45.0", ""]
    assert chart("s", {"": [(-5, 0.5), (5, 0.5)]}, (-5, 5), share=True)["lines"][0]["path"] == "M0 45.0L320 45.0"


def test_an_agent_that_is_gone_is_told(copied):
    for file in copied.glob("runs/near-tiny-*/run.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "agent_path": "no_module:Gone"}))
    text = clenv.report(copied).read_text()
    assert text.count("The agent cannot be restored here") == 2
    assert "no_module" in text


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_single_run(copied, state):
    import bench_folder

    place = copied / "runs/near-tiny-0"
    if state == "failed":
        bench_folder.fail(place)
    page = Page(clenv.report(place))
    assert page.all("form") == []
    (section,) = page.all("details", class_="run")
    assert "open" in section
    assert f"1 {state}" in page.text
    assert "no intervals" in page.text
    assert "Is the difference real?" not in page.text


def test_runs_without_steps_evaluations_requests_or_checkpoints(tmp_path):
    import bench_folder

    place = bench_folder.make_bench(
        tmp_path / "bare",
        scenarios={"s": {"horizon": 60}},
        agents={"a": ("tiny", {}), "b": ("tiny", {"lr": 0.3})},
        seeds=(0,),
        evaluate=0,
    )
    for name in ("checkpoint.pt", "evaluations.jsonl"):
        (place / "runs/s-a-0" / name).unlink()
    for file in (place / "runs/s-b-0").iterdir():
        if file.name != "job.json":
            file.unlink()
    (place / "runs/s-b-0/failure.json").write_text(
        json.dumps({"kind": "timeout", "message": "too long", "traceback": None, "step": None, "seconds": 3})
    )
    page = Page(clenv.report(place))
    assert "No task was asked to be unlearned." in page.text
    assert "too long" in page.text
    assert "cannot be restored here: there is no checkpoint" in page.text
    failed = page.all("details", data_state="failed")
    assert "0 steps" in failed[0]["text"]


def test_regression_and_endless_contexts(tmp_path):
    for name, scenario, settings in (
        ("regression", "clenv/ToyPolynomial-v0", {"horizon": 100, "alpha": 0.5}),
        ("endless", "clenv/OsakaEpisodic-v0", {"horizon": 60}),
    ):
        env = clenv.make(scenario, **settings)
        agent = clenv.make_agent("finetune", env)
        for _ in clenv.run(env, agent, tmp_path / name, progress=False, tensorboard=False):
            pass
        page = Page(clenv.report(tmp_path / name))
        label = next(e["aria-label"] for e in page.all("svg") if e.get("aria-label", "").startswith("Online loss over"))
        assert f"{len(env.score.visits)} visits to {len(env.score.by_task())} tasks" in label


def test_names_cannot_break_the_page(tmp_path):
    import bench_folder

    label = '</script><script>alert(1)</script> & "x" \\1'
    place = bench_folder.make_bench(tmp_path / "evil", scenarios={"<i>": {"horizon": 60}}, agents={}, seeds=(0,))
    bench_folder.play(place, "<i>", "tiny/Blobs-v0", {"horizon": 60}, "safe", "tiny", {}, 0)
    job = place / "runs/<i>-safe-0/job.json"
    job.write_text(json.dumps({**json.loads(job.read_text()), "agent": label}))
    page = Page(clenv.report(place))
    assert "alert(1)" not in "".join(e["text"] for e in page.all("script", type=None))
    (names,) = page.all("script", id="agents")
    assert json.loads(names["text"]) == [label]
    assert page.all("details", class_="run")[0]["data-agent"] == label
    assert page.all("i") == [e for e in page.all("i") if e.get("class") == "key" or not e["text"]]
    assert any(label in e.get("aria-label", "") for e in page.all("svg"))


def test_a_bench_that_has_hardly_begun(copied):
    suite = json.loads((copied / "suite.json").read_text())
    suite["runs"] += [{"agent": "late", "scenario": "later", "seed": seed} for seed in (0, 7)]
    (copied / "suite.json").write_text(json.dumps(suite))
    for run in sorted(copied.glob("runs/*"))[1:]:
        shutil.rmtree(run)
    page = Page(clenv.report(copied))
    assert "13 not begun" in page.text
    assert [e["data-scenario"] for e in page.all("details", class_="part")] == ["near", "far", "later"]
    rows = {e["data-agent"]: e["text"] for e in page.all("tr") if e.get("data-scenario") == "later"}
    assert list(rows) == ["late"]
    assert "2 missing" in rows["late"]
    assert [e["text"] for e in page.all("option")].count("7") == 1


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(clenv.CheckpointError, match="holds no run"):
        clenv.report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Parts


def test_heat_maps_hold_a_pixel_a_number():
    import base64
    import io

    import matplotlib.image

    image = heat_map(np.array([[0.0, 1.0, np.nan]]))
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(image.partition(",")[2])))
    assert pixels.shape == (1, 3, 4)
    assert pixels[0, :, 3].tolist() == [1, 1, 0]
    assert pixels[0, 0, 2] > pixels[0, 0, 0]  # dark blue
    assert pixels[0, 1, 0] > 0.9  # bright yellow


def test_evaluations_are_spread_over_the_stream():
    spread = over_steps([0, 50], np.array([[0.1, np.nan], [0.2, 0.9]]), 100)
    assert spread.shape == (2, 160)
    assert spread[0, 0] == 0.1
    assert spread[0, 79] == 0.1
    assert spread[0, 80] == 0.2
    assert np.isnan(spread[1, :80]).all()
    assert (spread[1, 80:] == 0.9).all()
    assert np.isnan(over_steps([50], np.array([[1.0]]), 100)[0, 0])


def test_small_pictures_show_every_visit_and_survive_infinities():
    from clenv.world.score import Visit

    visits = [Visit("a", "", 1, 0, 10), Visit("b", "", 1, 10, 20), Visit("a", "", 2, 20, 30)]
    drawn = spark(np.array([1.0] * 29 + [np.inf]), visits)
    assert drawn["first"].count("M") == 2
    assert drawn["returns"].count("M") == 1
    assert drawn["top"] == 1
    assert "inf" not in drawn["loss"]
    assert spark(np.full(3, np.nan), visits[:1])["loss"] == ""


def test_sizes_in_words():
    assert [size(n) for n in (12, 1200, 3.4e6, 5e9, math.nan)] == ["12 B", "1.2 kB", "3.4 MB", "5.0 GB", "-"]


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_in_both_themes(theme):
    """Text at least 4.5 to 1, curves at least 3 to 1 (WCAG 2.1, AA)."""
    css = (importlib.import_module("clenv.bench").__path__[0]) + "/templates/report.css"
    with open(css) as file:  # noqa: PTH123
        blocks = re.findall(r":root[^{]*\{(.*?)\}", file.read(), re.DOTALL)
    colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", blocks[theme]))
    for ground in ("paper", "raised"):
        for name in ("ink", "muted", "accent", "bad", "good", "warn"):
            light, dark = sorted((luminance(colors[ground]), luminance(colors[name])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, name)
    for number in range(8):
        light, dark = sorted((luminance(colors["paper"]), luminance(colors[f"c{number}"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, number
