"""The page of a reproduction: what stands on it, from claims and records made by hand."""

import pathlib
import re
import shutil
import string
import subprocess
import sys

import pytest
from html_page import Page

from tf_lrtraj import claims, records
from tf_lrtraj.claims import verdicts as v
from tf_lrtraj.report import drawing
from tf_lrtraj.report.study import (
    html_printer,
    markdown_page,
    markdown_printer,
    write_page,
    write_results,
)
from tf_lrtraj.report.study.claim_figure import ClaimFigure
from tf_lrtraj.report.study.first_screen import HEADS, _filled
from tf_lrtraj.report.study.page_blocks import Code, Figure, Heading, Paragraph, Table
from tf_lrtraj.report.study.registry import FIGURES, HEAD
from tf_lrtraj.statistics import TOST, mean_of

ROOT = pathlib.Path(__file__).parents[2]
EVIL = '<script>alert("1")</script> & "more" `|` $x$'
ZERO = v.Wanted("zero_crossing", "rate at which the gain is gone", low=0.75, high=1.25)
BEST = v.Wanted("best_rate", "best rate", low=0.375, high=0.625)
SAME = v.Wanted("same", "run less average, % of the gain", low=-1.0, high=1.0, level=TOST)


def seeds(value):
    return mean_of([value - 0.01, value, value + 0.01])


def decided(zero, best=0.5, drift=1.0):
    def judge(records):
        condition = v.Condition("drift", "change of the loss, %", seeds(drift), -10.0, 10.0)
        parts = [ZERO.judge(seeds(zero)), BEST.judge(seeds(best))]
        parts.append(SAME.judge(seeds(0.3), at="step 80"))
        told = [v.ExtraNumber("batches", "number of batches", 32.0)]
        notes = ["The rate is the run's."]
        return v.conclude(parts, conditions=[condition], numbers=told, notes=notes)

    return judge


def missing(records):
    raise claims.NotMeasured("The records have no rates.")


def claim(name, judge, **fields):
    texts = {
        "title": f"What {name} says",
        "sentence": f"Claim {name} says so.",
        "source": "A paper",
    }
    texts |= {"experiment": f"A run for {name}.", "argument": "As its words mean."}
    known = {"needs": (), "wanted": (ZERO, BEST, SAME), "judge": judge, **texts}
    return claims.Claim(name, **{**known, **fields})


CLAIMS = (
    claim("B1", decided(2.0)),
    claim("B4", decided(0.98)),
    claim("A1", decided(1.0, drift=30.0)),
    claim("A4", decided(1.0)),
    claim("S1", decided(1.0)),
    claim("O1", missing),
)
VERDICTS = {
    "B1": ("✗", "not reproduced", "no"),
    "B4": ("✓", "reproduced", "yes"),
    "A1": ("?", "inconclusive", "open"),
    "A4": ("✓", "reproduced", "yes"),
    "O1": ("○", "not measured", "blank"),
}


def drawn(judgement):
    figure, (axes,) = drawing.panels(1, 1, 3.0, 2.0)
    axes.plot([0, 1], [0.0, judgement.part("zero_crossing").interval.value])
    return figure


def undrawable(judgement):
    return judgement.drawn["curve"]


DRAWN = {
    name: ClaimFigure(f"Curve of {name}", "Lines are seeds.", undrawable if name == "A4" else drawn)
    for name in VERDICTS
}
DRAWN["B1_head"] = ClaimFigure("Simpler curve of B1", "Lines.", drawn)
POWER = [
    {"claim": "B4", "part": "zero_crossing", "expected": 1.0, "scatter": 0.05, "count": 3},
    {"claim": "B4", "part": "best_rate", "expected": 0.5, "scatter": 0.5, "count": 4, "of": "runs"},
]
CONFIG = {
    "name": "small",
    "command": "lrtraj-reproduce --config=small",
    "seeds": 3,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "data": {"name": "digits"},
    "model": {"depth": 8, "width": 8},
    "claims": ["B1", "B4", "A1", "A4", "O1"],
    "power": POWER,
    "pilot": "two runs of one epoch.",
}
RUN = {"status": "done", "keras_backend": "jax", "seconds": {"base": {"0": 90.0, "1": 60.0}}}


def study(folder, some=CLAIMS, run=RUN, **config):
    folder.mkdir(exist_ok=True)
    records.write_json(folder / "config.json", {**CONFIG, **config})
    records.write_json(folder / "run.json", run)
    return claims.Study(folder, some)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return study(tmp_path_factory.mktemp("page") / "W")


@pytest.fixture(scope="module")
def page(made):
    return write_page(made, DRAWN).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(made, page):
    return markdown_page(made, "../results/small", DRAWN).decode()


def section(page, name):
    found = page[page.index(f'<h3 id="{name}"') :]
    return found[: found.index("</section>")]


# The first screen -----------------------------------------------------------------------------


def test_it_opens_with_what_was_found(page):
    top = Page(page[page.index("<main>") + 6 : page.index('<div class="strip">')]).text
    assert top == (
        "Reproduction at the scale small "
        "This scale measures 5 claims of 6: 2 are reproduced, 1 is not reproduced, "
        "1 is inconclusive and 1 is not measured. "
        "After a run without momentum one more step stops helping held-out images at 0.98 times "
        "the run's rate, and helps most at 0.5 times it ( B4 : ✓ reproduced ). "
        "“What A1 says” ( A1 : ? inconclusive ). "
        "“What O1 says” was not measured ( O1 )."
    )


def test_a_sentence_without_its_number_names_the_claim():
    part = v.conclude([ZERO.judge(seeds(1.0)), ZERO.judge(seeds(2.0), at="step 9")])
    assert _filled("at {zero_crossing:percent} %", part) == "at 100 %"
    assert _filled("at {zero_crossing_step_9:factor}, {zero_crossing}", part) == "at 7.39, 1"
    assert _filled("{zero_crossing:below} %", part) == "-172 %"
    assert _filled("at {other}", part) == ""


def test_there_is_a_cell_for_every_claim(page):
    strips = Page(page[page.index('<div class="strip">') : page.index('<div class="gallery">')])
    cells = [a for tag, a in strips.tags if tag == "a"]
    assert [cell["href"][1:] for cell in cells] == list(VERDICTS)
    for cell, (name, (_, verdict, kind)) in zip(cells, VERDICTS.items(), strict=True):
        assert cell["class"] == f"cell {kind}"
        assert cell["aria-label"] == cell["title"] == f"{name}, {verdict}: What {name} says"
    assert "Averaging and schedules (1 of 2 reproduced) ? A1 ✓ A4" in strips.text


def test_head_figures_are_drawn_once(page):
    gallery = page[page.index('<div class="gallery">') : page.index("<details>")]
    assert re.findall(r'<a href="#(\w+)"', gallery) == ["B4", "B1", "A1"]
    # Drawn elsewhere, or for the first screen alone.
    assert re.findall(r'<use href="#svg-(\w+)"', gallery) == ["B4", "A1"]
    assert re.findall(r'id="svg-(\w+)"', gallery) == ["B1_head"]
    assert page.count('id="svg-B4"') == page.count('id="svg-B1_head"') == 1
    assert gallery.count("viewBox=") == 3


def test_a_smoke_test_says_so_and_gives_no_verdicts(tmp_path):
    found = study(tmp_path, judged=False, claims=[])
    text = write_page(found, DRAWN).read_text(encoding="utf-8")
    told = Page(text[text.index("<main>") + 6 : text.index("</details>") + 10]).text
    assert "small This is a smoke test: it shows that everything runs." in told
    assert "Of 6 claims 1 is not measured and 5 are not judged." in told
    assert "at 0.98 times the run's rate, and helps most at 0.5 times it ( B4 )." in told
    rest = text[: text.index("How to read")] + text[text.index('id="run"') :]
    marks = set(re.findall(r'class="mark (\w+)"', rest))
    assert marks == {"plain", "blank"}
    assert "0.98 [0.955, 1]" in Page(section(text, "B4")).text
    assert "> This is a smoke test" in markdown_page(found, ".", DRAWN).decode()


# Sections -------------------------------------------------------------------------------------


def test_a_section_tells_all_of_a_claim(page):
    found = Page(section(page, "B4")).text
    assert found.startswith("B4. What B4 says Claim B4 says so. ✓ reproduced . All 3 parts hold.")
    assert "Lines are seeds. Part Measured Wanted Verdict" in found
    assert "rate at which the gain is gone 0.98 [0.955, 1] 0.75 to 1.25 ✓ holds" in found
    assert "best rate 0.5 [0.475, 0.525] 0.375 to 0.625 ✓ holds" in found
    assert (
        "step 80: run less average, % of the gain 0.3 [0.283, 0.317] (90 %) -1 to 1 ✓ holds"
        in found
    )
    assert "change of the loss, % 1 [0.975, 1.02] -10 to 10 ✓ met" in found
    assert "Claimed by: A paper Measured: A run for B4. Thresholds: As its words mean." in found
    assert "lrtraj-reproduce --config=small --workdir=… --claims=B4" in found
    assert "The rate is the run's." in found and "number of batches 32" in found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("B1", "✗ not reproduced . Fails: rate at which the gain is gone."),
        ("B1", "2 [1.98, 2.02] 0.75 to 1.25 ✗ fails"),
        ("A1", "? inconclusive . A condition is not met: change of the loss, %."),
        ("A1", "30 [30, 30] -10 to 10 ✗ not met"),
        ("O1", "○ not measured . The records have no rates."),
        ("A4", "The figure could not be drawn from these records."),
    ],
)
def test_a_section_says_what_is_not(page, name, words):
    found = section(page, name)
    assert words in Page(found).text
    assert ("<figure" in found) == (name in ("B1", "A1"))


def test_claims_that_the_scale_does_not_measure_are_left_out(page, document):
    assert 'id="S1"' not in page and "### S1" not in document


def test_no_line_of_a_table_has_two_intervals(page, document):
    rows = [Page(f"<tr>{row}</tr>").text for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert len(rows) > 20
    lines = [line for line in document.splitlines() if line.startswith("|")]
    for row in [*rows, *(line.replace("\\", "") for line in lines)]:
        assert len(re.findall(r"\[[^\]#]*, ", row)) <= 1, row


# What was run ---------------------------------------------------------------------------------


def test_the_tables_about_the_run(page):
    text = Page(page).text
    for row in ("Network ResNet-8", "Momentum 0.9", "Duration, minutes 2", "Keras backend jax"):
        assert row in text
    assert "The scatter comes from: two runs of one epoch. 1 of 2 parts are decidable." in text
    assert "B4 : rate at which the gain is gone 0.75 to 1.25 1 0.05 3 seeds 0.124 yes" in text
    assert "B4 : best rate 0.375 to 0.625 0.5 0.5 4 runs 0.796 no" in text


@pytest.mark.parametrize(
    ("power", "words"),
    [
        ([{"claim": "B4"}], "is damaged: `power[0]` must have claim, part, expected"),
        ([{**POWER[0], "claim": []}], "is damaged: unhashable"),
        ([], "The configuration has no table of what it can decide."),
    ],
)
def test_what_the_run_can_decide_may_be_damaged(tmp_path, power, words):
    assert words in markdown_page(study(tmp_path, power=power)).decode().replace("\\", "")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            {"status": "interrupted", "message": "stopped"},
            "is not complete (interrupted: stopped).",
        ),
        ({"status": "incomplete"}, "The run is not complete (incomplete)."),
        ({"status": 3}, "run.json"),
        ({"status": "done"}, ""),
    ],
)
def test_a_run_that_is_not_whole_says_so(tmp_path, run, words):
    text = markdown_page(study(tmp_path, run=run)).decode()
    notices = [line for line in text.splitlines() if line.startswith("> ")]
    assert bool(notices) == bool(words) and words in " ".join(notices)
    assert str(tmp_path) not in text


# The page as a file ---------------------------------------------------------------------------


def test_it_is_sound_and_self_contained(page, made):
    found = Page(page)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    links = [*found.values("src"), *found.values("href"), *found.values("xlink:href")]
    assert {link[1:] for link in links} <= set(ids) and all(link[0] == "#" for link in links)
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "object")]
    assert [a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    assert str(made.records.folder) not in page


def test_equal_records_give_equal_bytes(tmp_path, page, document):
    again = study(tmp_path)
    assert write_page(again, DRAWN).read_text(encoding="utf-8") == page
    assert markdown_page(again, "../results/small", DRAWN).decode() == document
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"B1", "B1_head", "B4", "A1"}
    write_page(study(tmp_path, claims=["B4"]), DRAWN)  # the others' records are gone
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["B4.svg"]


def test_what_cannot_be_drawn_is_said(page):
    assert "The figure A4 could not be drawn (KeyError: &#x27;curve&#x27;)." in page


def test_text_is_escaped(tmp_path):
    def judge(records):
        wanted = v.Wanted("x", EVIL, low=0.0)
        condition = v.Condition("y", EVIL, 1.0, 0.0)
        told = [v.ExtraNumber("z", EVIL, 1.0)]
        return v.conclude([wanted.judge(1.0)], conditions=[condition], numbers=told, notes=[EVIL])

    texts = dict.fromkeys(("sentence", "source", "experiment", "argument"), EVIL)
    some = [claim("B1", judge, title=EVIL, **texts)]
    run = {"status": EVIL, "message": EVIL, "keras_backend": EVIL, "versions": {EVIL: EVIL}}
    found = study(tmp_path, some, run, name=EVIL, command=EVIL, pilot=EVIL, data={"name": EVIL})
    figures = {"B1": ClaimFigure(EVIL, EVIL, lambda judgement: drawing.panels(1, 1, 3, 2)[0])}
    text = write_page(found, figures).read_text(encoding="utf-8")
    assert "<script" not in text and Page(text).text.count(EVIL) >= 15
    outside = re.sub("`[^`]*`", "", markdown_page(found, ".", figures).decode())
    assert "<script" not in outside and not re.search(r"(?<!\\)\$", outside)


def test_the_configuration_may_hold_anything(tmp_path):
    odd = {"learning_rate": 2**60, "momentum": "high", "batch_size": True, "model": {"depth": []}}
    text = markdown_page(study(tmp_path, **odd, data={"name": None, "image_size": {}})).decode()
    assert "Learning rate" not in text and "Momentum" not in text


# Markdown -------------------------------------------------------------------------------------


def test_markdown_says_the_same(page, document):
    assert max(map(len, document.splitlines())) <= markdown_printer.LONGEST
    plain = re.sub(r"\]\([^)]*\)|[\\`*|!\[\]]|</?\w+>|^[-#>]+ ", " ", document, flags=re.MULTILINE)
    words = set(plain.split())
    told = re.sub(r"[\[\]]", " ", Page(page[page.index("<main>") + 6 :].split("</main>")[0]).text)
    numbers = {word for word in told.split() if any(c.isdigit() for c in word)}
    assert numbers - {f"{name}." for name in VERDICTS} <= words
    for name in VERDICTS:
        assert f"\n### {name}\n\n**What {name} says**\n" in document
        assert f"[{name}](#{name.lower()})" in document
    assert "![Curve of B4](../results/small/figures/B4.svg)" in document
    assert "figures/A4.svg" not in document


def test_a_table_with_a_long_row_is_a_list():
    table = Table(("Part", "Measured"), [("word " * 90, "1 [0, 2]")])
    lines = markdown_printer.printed([table], "f").splitlines()
    assert lines[0].startswith("- Part: word word") and "|" not in "".join(lines)
    assert max(map(len, lines)) <= markdown_printer.WIDTH
    assert "Measured: 1 \\[0, 2\\]" in " ".join(lines)


def test_lines_begin_nothing_by_accident():
    for start in ("- 3", "# of", "+ 1", "1. and", "= 4"):
        text = "x" * (markdown_printer.WIDTH - 1) + f" {start} b"
        second = markdown_printer.printed([Paragraph(text)], "f").splitlines()[1]
        assert re.match(r"\d*\\[-#+.=] ", second), second
    assert markdown_printer.printed([Paragraph(Code("a `b`\n c"))], "f") == "`a b c`\n"
    assert markdown_printer.printed([Paragraph("a|b <c> [d] *e*")], "f") == (
        r"a\|b &lt;c&gt; \[d\] \*e\*" + "\n"
    )


def test_blocks_in_html():
    blocks = [Heading(3, "B1", "B1", "A <b>"), Paragraph("50 % & more", notice=True)]
    assert html_printer.printed(blocks, {}) == (
        '<h3 id="B1">B1. A &lt;b&gt;</h3>\n<p class="notice">50\u00a0% &amp; more</p>\n'
    )
    figure = Figure("B1", "alt", "below")
    assert "<svg/>" in html_printer.printed([figure], {"B1": "<svg/>"})


# All of it ------------------------------------------------------------------------------------


def test_it_needs_no_framework():
    code = (
        "import sys, tf_lrtraj.report.study\n"
        "names = ('tensorflow', 'keras', 'jax', 'torch', 'matplotlib')\n"
        "print([m for m in names if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_claim_has_a_figure():
    # S3, of memory and time, is told by its parts.
    of_claims = {name.removesuffix(HEAD) for name in FIGURES}
    assert of_claims == {claim.id for claim in claims.CLAIMS} - {"S3"}


@pytest.mark.parametrize("one", [c for c in claims.CLAIMS if c.id in HEADS], ids=lambda c: c.id)
def test_sentences_name_parts_of_their_claims(one):
    names = [name for _, name, *_ in string.Formatter().parse(HEADS[one.id]) if name]
    assert names
    for name in names:
        assert any(f"{name}_".startswith(f"{wanted.name}_") for wanted in one.wanted), name


def test_ledger_and_page_are_written_from_one_judging(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results/reproduction_digits/measured/base", tmp_path / "measured/base")
    shutil.copy(ROOT / "results/reproduction_digits/config.json", tmp_path)
    judged = []
    monkeypatch.setattr("tf_lrtraj.claims.ledger.judge", lambda c, _: judged.append(c) or _NONE)
    write_results(tmp_path)
    assert judged == list(claims.CLAIMS)
    assert (tmp_path / "report.html").exists() and (tmp_path / "ledger.json").exists()


_NONE = claims.Judgement("not measured", "Nothing is.")


@pytest.mark.parametrize("scale", ["cifar10_cpu", "digits"])
def test_committed_documents_are_what_the_records_give(scale):
    folder = ROOT / "results" / f"reproduction_{scale}"
    document = (ROOT / "docs" / f"reproduction_{scale}.md").read_bytes()
    assert markdown_page(claims.Study(folder), f"../results/reproduction_{scale}") == document
