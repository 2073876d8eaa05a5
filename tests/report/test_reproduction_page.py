"""The page of a reproduction: what stands on it, from records and a ledger alone."""

import html
import html.parser
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tf_lrtraj import claims, records
from tf_lrtraj.claims.statistics import Interval
from tf_lrtraj.claims.verdicts import shown
from tf_lrtraj.report.reproduction import markdown_page, write_page
from tf_lrtraj.report.reproduction.entries import Entry
from tf_lrtraj.report.reproduction.plates import PLATES

SIGNS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "inconclusive": "?",
    "not run at this scale": "–",
}
# Few, because drawing takes most of the time: A1, A4, S7 and the run itself.
KEPT = ("base", "levels", "averages", "equivalent", "decays")


def build(folder):
    path = pathlib.Path(__file__).parents[1] / "claims" / "claim_records.py"
    spec = importlib.util.spec_from_file_location("claim_records", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(folder)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the text of each table row, and all of the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        self.words.append(data)
        if self.rows:
            self.rows[-1].append(data)

    def text(self):
        return " ".join(" ".join(self.words).split())

    def row(self, name):
        """The row of a claim in the table of verdicts, which comes first."""
        found = [" ".join(" ".join(row).split()) for row in self.rows]
        return next(row for row in found if row.split(" ")[0] == name)

    def values(self, attribute):
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Records of every claim; the ledger is made from them."""
    folder = build(tmp_path_factory.mktemp("reproduction") / "records")
    claims.write_ledger(folder)
    return folder


@pytest.fixture(scope="module")
def kept(whole, tmp_path_factory):
    """A folder in which most claims were not run; not to be changed."""
    folder = tmp_path_factory.mktemp("part") / "W"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "probes")
    for path in (folder / "measured").iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path)
    # A verdict of every kind, whatever the claims make of these records.
    claims.write_ledger(folder)
    change(folder, "A4", verdict="not reproduced")
    change(folder, "S7", verdict="inconclusive")
    return folder


@pytest.fixture(scope="module")
def page(kept):
    return write_page(kept).read_text(encoding="utf-8")


@pytest.fixture
def folder(kept, tmp_path):
    """The records of the levels only, to spoil: little is drawn."""
    copy = shutil.copytree(kept, tmp_path / "W")
    for path in (copy / "measured").iterdir():
        if path.name not in ("levels", "decays"):
            shutil.rmtree(path)
    return copy


def ledger(folder):
    return records.read_json(folder / "ledger.json")


def change(folder, name, **fields):
    content = ledger(folder)
    (entry,) = (entry for entry in content["claims"] if entry["id"] == name)
    entry.update(fields)
    records.write_json(folder / "ledger.json", content)


def drawn(text):
    """The page in words, numbers and units as they were before they were kept on one line."""
    return Page(text).text().replace("\u00a0", " ")


# What stands on it ----------------------------------------------------------------------------


def test_it_opens_with_every_claim_in_the_ledgers_order(page, kept):
    names = [entry["id"] for entry in ledger(kept)["claims"]]
    assert len(names) == 25
    table = page[: page.index('id="setting"')]
    assert re.findall(r'<th scope="row"><a href="#(\w+)"', table) == names
    assert "<figure" not in table


def test_every_verdict_is_a_word_and_a_sign(page, kept):
    found = Page(page)
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger(kept)["claims"]}
    assert set(verdicts.values()) == set(SIGNS)
    for name, verdict in verdicts.items():
        assert found.row(name).startswith(f"{name} {SIGNS[verdict]} {verdict} "), name
        section = page[page.index(f'id="{name}"') :]
        first = section[: section.index("</p>")]
        assert re.search(rf"{re.escape(SIGNS[verdict])}</span> {verdict}</span>", first), name


def test_the_tally_counts_verdicts(page, kept):
    verdicts = [entry["verdict"] for entry in ledger(kept)["claims"]]
    head = drawn(page[: page.index("</header>")])
    for verdict, sign in SIGNS.items():
        assert f"{sign} {verdicts.count(verdict)} {verdict}" in head


def test_numbers_are_the_ledgers(page, kept):
    entry = next(entry for entry in ledger(kept)["claims"] if entry["id"] == "A1")
    assert entry["verdict"] == "reproduced" and len(entry["numbers"]) > 10
    section = drawn(page[page.index('<section class="claim" id="A1"') :].split("</section>")[0])
    for name, value in entry["numbers"].items():
        told = shown(Interval(value["value"], value["low"], value["high"]))
        assert f"{name.replace('_', ' ')} {told}" in section, name
    for part in entry["statistic"].split("; "):
        assert part.split(": ")[1] in section
    assert entry["argument"] in section and entry["source"] in section
    assert (
        "lrtraj-reproduce --config=configs/reproduce_digits.py --workdir=… --claims=A1" in section
    )


def test_the_setting_is_told(page):
    words = drawn(page)
    assert "constant 0.1, momentum 0.9, weight decay 0.002, batches of 32" in words
    assert "1,437 training images, 360 test images" in words
    assert "1,200 of burn-in, a window of 400" in words
    assert "Seeds 3" in words
    assert "not known to us; these are our choice" in words


def test_a_reproduction_that_was_stopped_says_so(folder):
    shutil.rmtree(folder / "measured")
    for status, message in (("interrupted", "stopped by a signal"), ("done", None)):
        records.write_json(folder / "run.json", {"status": status, "message": message})
        text = write_page(folder).read_text(encoding="utf-8")
        told = "Not all of it was made (interrupted: stopped by a signal)"
        assert (told in text) == (told in markdown_page(folder)) == (status != "done")


def test_stationarity_is_told_before_the_claims(folder):
    shutil.rmtree(folder / "measured")
    told = {"statistic": "power 0.1 [0, 0.2]; half 0.05", "notes": ["the loss changes by 1 %"]}
    told["reason"] = "All 2 parts hold; ema='ema'"
    change(folder, "B7", verdict="reproduced", **told)
    text = write_page(folder).read_text(encoding="utf-8")
    section = drawn(text[text.index('id="stationarity"') :].split("<h2>")[0])
    for part in (
        "Power 0.1 [0, 0.2].",
        "Half 0.05.",
        "The loss changes by 1 %.",
        "EMA='ema'.",
        "✓ reproduced",
    ):
        assert part in section


def test_the_setting_comes_from_the_configuration_if_nothing_was_run(folder):
    shutil.rmtree(folder / "measured")
    assert "constant 0.1, momentum 0.9" in drawn(write_page(folder).read_text(encoding="utf-8"))


def test_what_was_not_run_says_so_in_its_place(page):
    words = Page(page)
    assert "measured/sweep/seed0.json" in words.row("A5")
    section = page[page.index('<section class="claim" id="A5"') :].split("</section>")[0]
    assert "Figure: not run at this scale." in section
    assert "<svg" not in section
    assert "<svg" in page[page.index('<section class="claim" id="A4"') :].split("</section>")[0]


def test_every_link_has_its_target_and_every_id_is_its_own(page):
    found = Page(page)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    inside = [link for link in found.values("href") if link.startswith("#")]
    assert len(inside) == 29  # 25 claims, 4 figures
    assert {link[1:] for link in inside} <= set(ids)
    assert {link[1:] for link in found.values("xlink:href") if link[0] == "#"} <= set(ids)


def test_it_is_self_contained(page, kept):
    found = Page(page)
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "object")]
    assert [a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    links = [*found.values("src"), *found.values("href"), *found.values("xlink:href")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert str(kept) not in page
    assert len(page) < 700_000  # four figures


def test_figures_lie_beside_it(page, kept):
    names = {path.stem for path in (kept / "figures").iterdir()}
    assert names == {"base", "A1", "A1_levels", "A4", "S7"}
    assert set(re.findall(r'<figure id="figure-(\w+)"', page)) == names
    for name in names:
        text = (kept / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<svg ") and text.endswith("</svg>\n")


def test_equal_records_give_equal_bytes(folder):
    once = write_page(folder).read_bytes()
    figures = {path: path.read_bytes() for path in sorted((folder / "figures").iterdir())}
    shutil.rmtree(folder / "figures")
    assert write_page(folder).read_bytes() == once
    assert {path: path.read_bytes() for path in sorted((folder / "figures").iterdir())} == figures


def test_a_figure_goes_when_its_records_are_gone(folder):
    write_page(folder)
    assert (folder / "figures" / "A4.svg").exists()
    shutil.rmtree(folder / "measured" / "decays")
    text = write_page(folder).read_text(encoding="utf-8")
    assert not (folder / "figures" / "A4.svg").exists()
    assert 'id="figure-A4"' not in text


# What is wrong --------------------------------------------------------------------------------


def test_text_of_records_is_escaped(folder):
    shutil.rmtree(folder / "measured")
    evil = '<script>alert("1")</script> & "more" `|`'
    change(folder, "B1", sentence=evil, notes=[evil], statistic=evil, reason=evil, source=evil)
    config = {**records.read_json(folder / "config.json"), "name": evil, "command": evil}
    records.write_json(folder / "config.json", config)
    text = write_page(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; ") >= 7
    assert evil in Page(text).row("B1")
    table = markdown_page(folder)
    outside = re.sub("`[^`]*`", "", table)  # Markdown escapes what is code
    assert "<script" not in outside and "&lt;script&gt;" in outside


def test_a_damaged_record_is_named_and_costs_its_figure_only(folder):
    path = folder / "measured" / "decays" / "seed1.json"
    path.write_text(path.read_text()[:50])
    other = folder / "measured" / "levels" / "seed0.json"
    other.write_text('{"about": 3, "rows": []}')
    text = write_page(folder).read_text(encoding="utf-8")
    notices = re.findall(r'<p class="notice">(.*?)</p>', text)
    assert len(notices) == 2
    assert notices[0].startswith("measured/decays/seed1.json is not valid JSON")
    assert notices[1].startswith("measured/levels/seed0.json is not a measured record")
    assert 'id="figure-A4"' in text and 'id="figure-base"' in text  # of the other seeds


def test_a_record_without_what_a_figure_needs(folder):
    for path in (folder / "measured" / "decays").iterdir():
        content = records.read_json(path)
        content["rows"] = [{**row, "loss": "high"} for row in content["rows"]]
        records.write_json(path, content)
    text = write_page(folder).read_text(encoding="utf-8")
    assert "The figure &#39;A4&#39; could not be drawn from its records (ValueError" in text
    assert "Figure: could not be drawn from its records." in text


def test_a_damaged_probe_is_named(folder):
    shutil.rmtree(folder / "measured")
    (folder / "probes" / "seed0").mkdir(parents=True)
    (folder / "probes" / "seed0" / "line-000000010.npz").write_bytes(b"nothing")
    text = write_page(folder).read_text(encoding="utf-8")
    assert "probes/seed0/line-000000010.npz is not a record of measured arrays" in text
    assert "<svg" not in text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"claims": 3}'])
def test_a_ledger_that_cannot_be_read_is_named(folder, content):
    path = folder / "ledger.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(records.RecordError, match=r"ledger\.json"):
        write_page(folder)


def test_a_verdict_that_is_none_is_no_verdict(folder):
    shutil.rmtree(folder / "measured")
    change(folder, "B2", verdict="surely true")
    text = write_page(folder).read_text(encoding="utf-8")
    assert "claim number 2 is not a claim" in text and "surely true" not in text


def test_a_number_without_an_interval_says_so(folder):
    shutil.rmtree(folder / "measured")
    change(folder, "B1", numbers={"a_b": {"value": 1.5, "low": "-Infinity", "high": "Infinity"}})
    assert "a b 1.5 [no interval]" in drawn(write_page(folder).read_text(encoding="utf-8"))


# Markdown -------------------------------------------------------------------------------------


def test_the_same_table_in_markdown(page, kept):
    text = markdown_page(kept, "../results/digits")
    entries = ledger(kept)["claims"]
    table = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(table) == len(entries)
    for line, entry in zip(table, entries, strict=True):
        assert line.startswith(f"| [{entry['id']}](#{entry['id'].lower()}) | ")
        assert f"| {SIGNS[entry['verdict']]} {entry['verdict']} |" in line
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "[A1](../results/digits/figures/A1.svg)" in text
    assert re.search(r"## A5\n\n\*\*– not run at this scale\.\*\* ", text)


# All of it ------------------------------------------------------------------------------------


def test_it_needs_no_framework():
    code = (
        "import sys, tf_lrtraj.report.reproduction\n"
        "print([m for m in ('tensorflow', 'keras', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_claim_has_a_figure():
    names = {claim.id for claim in claims.CLAIMS}
    assert {name.partition("_")[0] for name in PLATES} == names | {"base"}


@pytest.mark.long
def test_a_whole_reproduction_is_drawn(whole):
    text = write_page(whole).read_text(encoding="utf-8")
    names = {path.stem for path in (whole / "figures").iterdir()}
    # The records of the synthetic experiments, made for verdicts, hold no curves.
    assert names >= set(PLATES) - {"A6_model", "A7", "B5"}
    assert json.dumps(ledger(whole)).count('"verdict": "reproduced"') == 25
    assert len(text) < 3_000_000


def test_the_table_shows_what_decided_first():
    """Of several parts, those the reason names stand before those that passed."""
    entry = Entry(
        id="B9",
        sentence="s",
        source="",
        experiment="",
        threshold="",
        argument="",
        verdict="not reproduced",
        statistic="one 1 (wanted: below 2); two 5 (wanted: below 2); three 1 (wanted: below 2)",
        numbers=(),
        reason="Fails: two 5 (wanted: below 2).",
        notes=(),
        figures=(),
        command="",
    )
    assert [part.split()[0] for part in entry.decisive] == ["two", "one", "three"]


@pytest.mark.parametrize("scale", ["cifar10_cpu", "digits"])
def test_committed_documents_are_what_the_records_give(scale):
    root = pathlib.Path(__file__).parents[2]
    folder = root / "results" / f"reproduction_{scale}"
    document = (root / "docs" / f"reproduction_{scale}.md").read_text(encoding="utf-8")
    assert markdown_page(folder, f"../results/reproduction_{scale}") == document
    for term in ("B and a number", "95 % interval", "wanted: below 1", "? inconclusive*"):
        assert term in document


def test_a_number_that_surprises_stands_beside_its_reason(page):
    folder = pathlib.Path(__file__).parents[2] / "results" / "reproduction_cifar10_cpu"
    (row,) = [line for line in markdown_page(folder).splitlines() if line.startswith("| [S1]")]
    # Three seeds of 8,000 updates of 64 of 50,000 images.
    assert "-4.3 " in row and "the budget is short, 10.2 epochs" in row
    rows = [
        row
        for seed in range(3)
        for row in records.read_json(folder / f"measured/budget/seed{seed}.json")["rows"]
        if row["set"] == "train_part"
    ]
    means = [
        100 * sum(r["accuracy"] for r in rows if r["method"] == method) / 3
        for method in ("swa_constant", "conventional")
    ]
    assert "{:.3g} against {:.3g} %".format(*means) in row
    assert "How to read the table" in page and "Sandler et al. 2023" in page
