"""Published numbers: each is in its paper's text and finds its place in our results, and verdicts follow the rule."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT, shared_folder

from deepfake_nb.sections.paper_sets import PAPER
from deepfake_nb.study.files import InputError
from deepfake_nb.study.published import (
    VERDICTS,
    Span,
    as_published,
    compare_with_published,
    compute_reach,
    count_verdicts,
    equal_when_printed,
    half_digit,
    list_choices,
    load_published,
    papers_arithmetic,
    plot_verdicts,
    spans_overlap,
    style_comparison,
)
from deepfake_nb.study.records import CITED_AS, Published, Result, RunRecord, load_results, published_at

REFERENCE = CHECKOUT / "reports" / "reference"
TEXTS = {"murphy2024": "000_", "geva2022": "001_", "nurgozhin2025": "003_", "latentforensics": "004_"}
NUMBER = r"\d[\d,]*(?:\.\d+)?"


@pytest.fixture(scope="module")
def published():
    return load_published()


# --- the file against the papers ------------------------------------------------------------------------------------


def plain(text):
    """Text with single spaces, and no hyphens, which text extraction puts in and leaves out."""
    text = text.replace("\\sim ", "~").replace("\N{MINUS SIGN}", "-")
    return re.sub(r"-\s*", "", re.sub(r"\s+", " ", text))


@pytest.fixture(scope="module")
def papers():
    folder = shared_folder("papers")
    return {
        key: plain(next(folder.glob(f"{begin}*.txt")).read_text(encoding="utf-8"))
        for key, begin in TEXTS.items()
    }


def first_prints(numbers):
    return numbers.drop_duplicates(["paper", "table", "row", "column", "printed", "quote"])


@pytest.mark.parametrize("paper", TEXTS)
def test_every_quote_is_in_its_paper_and_holds_its_number(published, papers, paper):
    for number in published[published.paper == paper].itertuples():
        assert plain(number.quote) in papers[paper], f"{number.quote!r} is not in {paper}"
        parts = re.findall(NUMBER, number.printed) if " / " in number.printed else [number.printed]
        for part in parts:
            pattern = rf"(?<![\d.]){re.escape(plain(part))}(?![\d]|\.\d)"
            assert re.search(pattern, plain(number.quote)), f"{part!r} is not in {number.quote!r}"


def meaning(printed):
    """What printed text comes to, worked out apart from the file's `value`."""
    if " / " in printed:
        assert re.fullmatch(r"[\d,./+() ]+", printed)
        return eval(printed.replace(",", ""))
    found = re.search(NUMBER, printed)
    number = float(found[0].replace(",", "")) if found else None
    if printed.endswith("%"):
        return number / 100
    return number * 1000 if printed.endswith("k") else number


WORDS = {"first epoch": 1, "classifies all the input as 'real'": None, "3.8": 0.038}


def test_values_are_what_is_printed(published):
    for number in published.itertuples():
        if isinstance(number.published, str):
            assert number.published == number.printed
        elif number.printed in WORDS:
            assert number.published in (WORDS[number.printed], True, 1)
        else:
            assert equal_when_printed(meaning(number.printed), number.value, number.printed), number
            digits = len(number.value.partition(".")[2])
            shown = len(number.printed.strip("%").partition(".")[2])
            if " / " not in number.printed and not number.printed.startswith("+"):
                assert digits == shown + 2 * number.printed.endswith("%"), (
                    f"{number.value} of {number.printed}"
                )


def test_the_first_papers_table_is_whole_and_in_order(published, papers):
    """Its text reads blocks of two models down their columns."""
    text = papers["murphy2024"]
    body = text[text.index("Model/Method Train Data Eval Data") : text.index("Table 2: Performance")]
    rows = published[(published.paper == "murphy2024") & (published.table == "Table 2")]
    first, *pairs, last = rows.groupby("row", sort=False).value.agg(list)
    blocks = [[first], *(pairs[at : at + 2] for at in (0, 2, 4)), [last]]
    expected = [value for block in blocks for column in zip(*block, strict=True) for value in column]
    assert expected == re.findall(r"\d\.\d\d", body) and len(expected) == 31


@pytest.mark.parametrize("number, following", [("3.1", "3.2"), ("3.2", "3.3"), ("3.3", "3.4"), ("3.4", None)])
def test_the_third_papers_tables_are_whole_and_in_order(published, papers, number, following):
    text = papers["nurgozhin2025"]
    start = text.index(f"Table {number}: ")
    end = (
        text.index(f"Table {following}: ")
        if following
        else text.index("Significant differences in performance")
    )
    printed = re.findall(r"(?<![\d.])0\.\d{2,4}(?!\d)", text[start:end])
    rows = published[(published.paper == "nurgozhin2025") & (published.table == f"Table {number}")]
    assert rows.value.tolist() == printed
    assert rows.groupby("row", sort=False).size().nunique() == 1 and rows.row.nunique() == 10


def test_the_fourth_papers_table_is_whole_and_in_order(published, papers):
    text = papers["latentforensics"]
    body = text[text.index("Training Set (# Videos) Method Accuracy") : text.index("**Table 1**")]
    rows = published[(published.paper == "latentforensics") & (published.table == "Table 1")]
    assert rows[rows.column == "Accuracy"].value.tolist() == re.findall(r"0\.\d\d", body)
    assert rows[rows.column == "# Videos"].printed.tolist() == re.findall(r"\d+k", body)


def test_the_first_papers_set_sizes_are_whole(published, papers):
    text = papers["murphy2024"]
    body = text[text.index("Dataset # Videos # Clips") : text.index("Table 1: Summary")]
    rows = published[(published.paper == "murphy2024") & (published.table == "Table 1")]
    rows = first_prints(rows[rows.column.str.startswith("#")])
    assert rows.printed.tolist() == re.findall(r"(?<= )~?\d[\d,]+(?= )", body)


def test_counts_of_a_split_stand_behind_its_name(published):
    counts = published[published.column.isin(["real", "fake", "swapped"])]
    assert len(counts) == 4 + 4 + 2 + 6 + 2
    for number in counts.itertuples():
        within = rf"\([^()]*{re.escape(number.printed)} {number.column}"
        if number.quote.count("(") > 1:
            within = rf"{number.row} (?:videos|images) {within}"
        assert re.search(within, number.quote), number


def test_confusion_matrices_are_read_in_rows(published):
    figure = published[(published.table == "Figure 3") & (published.why_not != "")]
    for quote, counts in figure.groupby("quote").printed.agg(list).items():
        assert counts == re.findall(r"\d+", quote)
    cells = ["real called real", "real called fake", "fake called real", "fake called fake"]
    assert figure.column.tolist() == 2 * cells


def test_printed_pages_lie_between_the_right_running_heads(published, papers):
    """In the third paper's text a page number stands in each head; a quote lies behind the one of its page."""
    text = papers["nurgozhin2025"]
    heads = {
        9: "Chapter 2 Methodology",
        15: "Chapter 3 Results and Discussions 3.1",
        21: "Chapter 4 Conclusion This",
    }
    heads |= {12: "12 Chapter 2. Methodology", 14: "14 Chapter 2. Methodology", 16: "16 Chapter 3. Results"}
    heads |= {3: "prediction tasks. 3 CNNs", 17: "3.1. Results 17", 18: "18 Chapter 3. Results"}
    follow = {
        3: "4 Chapter 1.",
        9: "10 Chapter 2.",
        12: "2.4. Training Strategy 13",
        14: "Chapter 3 Results and Discussions 3.1",
    }
    follow |= {
        15: "16 Chapter 3.",
        16: "3.1. Results 17",
        17: "18 Chapter 3.",
        18: "3.2. Discussions 19",
        21: "22 Chapter 4.",
    }
    numbers = published[(published.paper == "nurgozhin2025") & published.page.notna()]
    assert set(numbers.page) == set(heads)
    for number in numbers.itertuples():
        start = text.index(heads[number.page])
        assert plain(number.quote) in text[start : text.index(follow[number.page], start)], number


# --- the file against the sections ----------------------------------------------------------------------------------


def recorded():
    files = sorted(REFERENCE.glob("*/results.json"))
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]


def place_of(result):
    return tuple(result[name] for name in ("section", "table", "row", "metric"))


def test_every_place_of_the_file_gives_its_own_number_and_source(published):
    """So no two lines claim one place."""
    for number in published[published.section != ""].itertuples():
        expected = (number.published, f"{CITED_AS[number.paper]}, {number.table}")
        for table, row in itertools.product(number.our_table.split(" | "), number.our_row.split(" | ")):
            place = number.section, table.replace("*", ", some random features"), row, number.our_metric
            found = published_at(*place)
            assert found == expected and type(found.number) is type(number.published), place


@pytest.mark.parametrize(
    "place",
    [
        ("fusion", "Table 3.1", "Xception", "Acc."),
        ("fusion", "Table 3.1, from scratch and more", "Xception", "Acc."),
        ("fusion", "Table 3.1, from scratch", "Xception + ResNet + Mesonet", "Acc."),
        ("fusion", "Table 3.1, from scratch", "Xception", "AUC"),
        ("latent", "Table 3.1, from scratch", "Xception", "Acc."),
        ("frame_detectors", "Best epoch", "xception", "test accuracy there"),
        ("frame_detectors", "Collapse", "simplenet on synthetic", "share called fake"),
        ("no such section", "", "", ""),
    ],
)
def test_another_place_has_no_number(place):
    assert published_at(*place) == Published(None, "")


@pytest.mark.parametrize(
    "protocol, expected",
    [
        ("stated", (20, "Murphy 2024, section 3.1")),
        ("published", (24, "released code of Murphy 2024, ft_ffdlc_altfrz_stage2.py")),
    ],
)
def test_a_number_may_depend_on_the_protocol(protocol, expected):
    assert published_at("datasets", "Validation", f"FF++ DLC, {protocol} protocol", "files") == expected


def test_a_record_looks_up_the_papers_number_unless_one_is_given():
    record = RunRecord("latent", "smoke")
    place = "Table 1", "MesoNet", "accuracy, frames"
    record.add(*place, np.float32(0.5))
    record.add(*place, 0.5, published=None)
    record.add(*place, 0.5, published=0.9, source="somebody")
    record.add("Figure 4", "SG", "perceptual distance to the face", 0.5, source="LatentForensics, figure 4")
    found = [(result.published, result.source) for result in record.results]
    assert found[:2] == [(0.84, "LatentForensics, Table 1"), (None, "")]
    assert found[2:] == [(0.9, "somebody"), (None, "LatentForensics, figure 4")]
    assert record.table("Table 1").paper.tolist() == [0.84, None, 0.9]


def test_the_reference_has_the_numbers_and_sources_of_the_file():
    given = [result for result in recorded() if result["published"] is not None]
    assert len(given) > 300
    for result in given:
        found = published_at(*place_of(result))
        assert (result["published"], result["source"]) == (found.number, found.source), result


def test_every_place_in_the_file_is_one_that_a_section_fills(published):
    """But for those that appear at another profile, protocol or outcome."""
    elsewhere = {"Validation", "Collapse"}
    places, tables = {place_of(result) for result in recorded()}, {}
    for section, table, *_ in places:
        tables.setdefault(section, set()).add(table)
    for number in published[published.section != ""].itertuples():
        found = any(place in places for place in list_choices(number, tables))
        assert found or number.our_table in elsewhere, f"no section fills {number}"


def test_sizes_of_the_papers_sets_are_those_of_the_file(published):
    """What a paper does not state has no place in the file, so that no size of ours is shown as a paper's."""
    sizes = {
        (f"{name} {split}", word): size
        for name, splits in PAPER.items()
        for split, pair in splits.items()
        for word, size in zip(("real", "fake"), pair, strict=True)
    }
    lines = published[(published.section == "datasets") & (published.our_table == "Files")]
    stated = dict(zip(zip(lines.our_row, lines.our_metric, strict=True), lines.published, strict=True))
    assert len(stated) == len(lines) == 22 and stated.items() <= sizes.items()


@pytest.mark.parametrize(
    "notebook", sorted((CHECKOUT / "nbs").glob("[1-6]0_*.ipynb")), ids=lambda path: path.stem
)
def test_no_section_types_a_papers_number(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    typed = [line for cell in cells for line in cell["source"] if re.search(r"published=[^,)]*\d", line)]
    assert not typed


def test_each_line_says_where_ours_is_or_why_there_is_none(published):
    given = (published[["section", "why_not", "repeats"]] != "").sum(axis=1)
    assert (given == 1).all()
    places = published[["section", "our_table", "our_row", "our_metric"]] != ""
    assert (places.all(axis=1) == places.any(axis=1)).all()
    once = published[published.repeats == ""]
    assert not once.duplicated(["paper", "table", "row", "column", "section", "our_table"]).any()
    assert set(published.paper) == set(CITED_AS) and set(published.kind) == {"fact", "measurement"}


def test_what_is_printed_again_names_a_table_that_has_it(published):
    first = set(
        published[published.repeats == ""][["paper", "table", "row", "column"]].itertuples(
            index=False, name=None
        )
    )
    for number in published[published.repeats != ""].itertuples():
        assert (number.paper, number.repeats, number.row, number.column) in first, number


# --- the rule -------------------------------------------------------------------------------------------------------


def result(value=0.85, place=("latent", "Table 1", "MesoNet", "accuracy, frames"), **fields):
    return asdict(Result(*place, value, **{"data": "a real set", "profile": "paper", **fields}))


def verdict(*results, row="MesoNet", column="Accuracy"):
    compared = compare_with_published(pd.DataFrame(results))
    return compared[(compared.row == row) & (compared.column == column)].iloc[0]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.83, 0.9, "reproduced"),
        (0.84, 0.9, "reproduced"),
        (0.841, 0.9, "differs"),
        (0.7, 0.839, "differs"),
        (None, 0.9, "differs"),
    ],
)
def test_the_interval_decides_on_real_data(low, high, expected):
    assert verdict(result(0.86, low=low, high=high)).verdict == expected
    assert verdict(result(0.86, low=low, high=high, data="rendered people")).verdict == "not comparable"


def test_without_an_interval_printed_digits_decide():
    assert verdict(result(0.8449)).verdict == "reproduced"
    assert verdict(result(0.8451)).verdict == "differs"
    assert verdict(result(float("nan"))).verdict == "not measured"


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"data": "rendered people, StyleGAN"}, "rendered people"),
        ({"note": "frozen, not pretrained: Xception"}, "not pretrained"),
        ({"note": "the package's, trained on rendered people"}, "the network below ours"),
    ],
)
def test_what_stands_in_the_way_is_said(fields, why):
    found = verdict(result(0.84, **fields))
    assert found.verdict == "not comparable" and why in found.why


def test_a_row_that_says_it_is_not_pretrained_is_not_comparable():
    place = ("frame_detectors", "Best epoch", "xception, not pretrained on synthetic", "test accuracy there")
    found = verdict(result(0.984, place), row="Xception, synthetic", column="test accuracy")
    assert (found.verdict, found.our_row) == ("not comparable", place[2])
    place = (*place[:2], "xception on synthetic", place[3])
    assert (
        verdict(result(0.984, place), row="Xception, synthetic", column="test accuracy").verdict
        == "reproduced"
    )


def test_a_truth_is_compared_as_one():
    place = ("frame_detectors", "Collapse", "simplenet on synthetic", "collapsed")
    row, column = "SimpleNet, synthetic", "one word for all"
    assert verdict(result(True, place), row=row, column=column).verdict == "reproduced"
    assert verdict(result(False, place), row=row, column=column).verdict == "differs"


def test_a_fact_holds_on_any_data_and_a_smaller_network_is_not_held_against_it():
    place = ("fusion", "Backbones", "Mesonet", "parameters at 256 pixels")
    columns = {"row": "Meso-4", "column": "trainable parameters"}
    assert verdict(result(27977, place, data="rendered people"), **columns).verdict == "reproduced"
    assert verdict(result(27978, place, published=27977), **columns).verdict == "differs"
    assert verdict(result(27978, place, note="width 8"), **columns).verdict == "not comparable"


def test_the_stated_way_comes_before_the_listed_way():
    scratch = result(0.8833, ("fusion", "Table 3.1, from scratch", "Xception", "Acc."))
    frozen = result(0.5, ("fusion", "Table 3.1, frozen, some random features", "Xception", "Acc."))
    both = verdict(frozen, scratch, row="Xception", column="Acc.")
    assert (both.our_table, both.verdict) == ("Table 3.1, from scratch", "reproduced")
    alone = verdict(frozen, row="Xception", column="Acc.")
    assert (alone.our_table, alone.verdict) == ("Table 3.1, frozen, some random features", "differs")


def test_about_fifteen_thousand_is_no_exact_number():
    place = ("latent", "Faces", "test", "frames")
    columns = {"row": "testing set", "column": "frames"}
    assert verdict(result(15_400, place), **columns).verdict == "reproduced"
    assert verdict(result(15_600, place), **columns).verdict == "differs"
    assert [half_digit("15000", "around 15k"), half_digit("15000", "15,000")] == [500, 0.5]


def test_no_results_at_all_are_all_not_measured(tmp_path):
    compared = compare_with_published(load_results(tmp_path))
    assert set(compared.verdict) == {"not measured"} and compared.ours.isna().all()
    assert compared.why.str.contains("not among these results").any()


def test_something_else_than_results_is_refused():
    with pytest.raises(InputError, match="no column 'section'"):
        compare_with_published(pd.DataFrame({"a": [1]}))


def test_every_published_number_is_compared_once(published):
    compared = compare_with_published(load_results(REFERENCE))
    once = first_prints(published[published.repeats == ""])
    key = ["paper", "table", "row", "column"]
    assert compared[key].values.tolist() == once[key].drop_duplicates().values.tolist()
    assert set(compared.verdict) <= set(VERDICTS) and (compared.why.str.len() > 0).all()
    counts = count_verdicts(compared)
    assert counts.loc["all", "numbers"] == len(compared) == counts.drop("all").numbers.sum()
    on_rendered = compared[
        compared.data.fillna("").str.contains("rendered") & (compared.verdict == "reproduced")
    ]
    assert (on_rendered.kind == "fact").all()
    facts = compared[(compared.kind == "fact") & (compared.paper != "wang2023-code")]
    assert (facts.verdict == "reproduced").all(), facts[["row", "column", "why"]]


def test_a_table_shows_hostile_text_as_text():
    evil = "<img src=x onerror=alert(1)>\n\"'&"
    compared = compare_with_published(pd.DataFrame([result(0.85, data=evil, note=evil)]))
    page = style_comparison(compared[compared.section != ""], caption=evil).to_html()
    assert "<img" not in page and page.count("&lt;img") == 2


@pytest.mark.parametrize(
    ("printed", "number", "shown"),
    [
        ("0.80", 0.8, "0.80"),
        ("27,977", 27977, "27,977"),
        ("~4,500", 4500, "~4,500"),
        ("87.5%", 0.875, "87.5%"),
        ("around 15k", 15000, "around 15k = 15000"),
        ("4,119 / 5,250", 0.785, "4,119 / 5,250 = 0.785"),
    ],
)
def test_what_is_printed_is_explained_only_where_it_is_not_plain(printed, number, shown):
    assert as_published(SimpleNamespace(printed=printed, published=number)) == shown


def test_the_figure_counts_what_the_summary_counts():
    compared = compare_with_published(pd.DataFrame([result(0.84)]))
    axes = plot_verdicts(compared)
    shown = [int(text.get_text()) for text in axes.texts if text.get_text()]
    counts = count_verdicts(compared)[list(VERDICTS)].to_numpy()
    assert shown == counts[counts > 0].tolist()
    assert axes.get_xlabel() and axes.get_ylabel()
    axes.figure.clear()


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_a_reach_holds_every_number_between_its_ends():
    rng = np.random.default_rng(0)
    spans = [Span(0.2, 0.4), Span(0.6, 0.9)]
    inside = [rng.uniform(span.low, span.high, 500) for span in spans]
    ratio = inside[0] / inside[1]
    found = compute_reach(lambda a, b: a / b, *spans)
    assert found.low <= ratio.min() and ratio.max() <= found.high
    assert found[:2] == (0.2 / 0.9, 0.4 / 0.6)
    assert not spans_overlap(Span(0.0, 0.1), Span(0.1, 0.2)) and spans_overlap(Span(0.0, 0.1), Span(0.1, 0.1))


def test_a_changed_number_fails_a_check(published):
    before = papers_arithmetic(published)
    changed = published.copy()
    at = (published.table == "Table 3.2") & (published.row == "Xception") & (published.column == "F1 (0)")
    changed.loc[at, ["value", "published", "printed"]] = ["0.80", 0.8, "0.80"]
    after = papers_arithmetic(changed)
    lost = after[before.holds & ~after.holds]
    assert set(lost.check) == {"F1 from precision and recall", "macro average from its two parts"}


def test_arithmetic_agrees_with_counting_confusion_matrices(published):
    """The fusion section asks the same of Tables 3.1 and 3.3 by trying every confusion matrix."""
    results = [
        row
        for row in recorded()
        if row["table"] == "Feasible confusion matrices" and row["metric"] == "accuracy alone"
    ]
    impossible = {row["row"] for row in results if row["value"] == 0}
    checks = papers_arithmetic(published)
    fails = checks[(checks.check == "accuracy is a whole number of images") & ~checks.holds]
    assert impossible == {f"{table}, {row}" for table, row in zip(fails.table, fails.row, strict=True)}


# --- the package ----------------------------------------------------------------------------------------------------


def test_the_file_is_found_from_any_folder_and_without_pandas(tmp_path):
    code = "import sys; from deepfake_nb.study.records import published_at as at; print(at('latent', 'Faces', 'test', 'videos'))"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code + "; assert 'pandas' not in sys.modules"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "number=301" in done.stdout and done.returncode == 0, done.stderr
    assert '"*.csv"' in (CHECKOUT / "setup.py").read_text()
    assert (CHECKOUT / "deepfake_nb" / "published.csv").is_file()
