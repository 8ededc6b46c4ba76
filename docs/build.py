"""Build the HTML site of a profile's reports: `make study` and `make docs` call this.

Pages come from executed notebooks, from docstrings, from the command line's own help, from `CITATION.cff` and from
`docs/guides/`. The finished site needs no network: its search runs in the browser, formulas are MathML.
"""

import argparse
import ast
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import typer
import yaml

from deepfake_nb.cli import app
from deepfake_nb.study.files import PROFILES, atomic_path, write_atomically
from deepfake_nb.study.records import SECTIONS, load_results
from deepfake_nb.study.runner import available_sections, execute_notebook, inputs_digest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "nbs"
ROOMS = {
    "study": "Study",
    "media": "Media",
    "networks": "Networks",
    "data": "Data",
    "people": "Rendered people and swaps",
    "evaluation": "Evaluation",
    "learning": "Learning",
    "detectors": "Detectors of real people",
    "sections": "Data sets of the papers",
    "scoring": "Scoring",
}  # folders of notebooks, in the order in which they stand on each other, and their titles
PAGES = ROOT / "docs" / "pages"
EXECUTED = ROOT / "docs" / "_build" / "executed"


def write_if_changed(path: Path, text: str) -> Path:
    """Write a page only when it changes, so that Sphinx does not build it again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with write_atomically(path, "w") as file:
            file.write(text)
    return path


def readable(cell: dict) -> dict | None:
    """A cell as a reader should see it: without nbdev's directives; None when it is hidden."""
    lines = "".join(cell["source"]).splitlines()
    directives = {line.strip() for line in lines if line.lstrip().startswith("#|")}
    if "#| hide" in directives or "injected-parameters" in cell["metadata"].get("tags", []):
        return None
    lines = [line for line in lines if line.strip() not in directives]
    source = "\n".join(lines).strip("\n")
    if not source and not cell.get("outputs"):
        return None
    if cell["cell_type"] == "code" and is_bookkeeping(source):
        tags = [*cell["metadata"].get("tags", []), "hide-input"]
        cell = {**cell, "metadata": {**cell["metadata"], "tags": tags}}
    return {**cell, "source": source}


BOOKKEEPING = ("PROFILE_SIZES = ", "refuse_unknown_parameters(", "RunRecord(", "def save(figure")


def is_bookkeeping(source: str) -> bool:
    """Whether a cell holds imports only, or sizes, checks of parameters and records: what a page folds."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a command of IPython
        return False
    imports = all(isinstance(statement, ast.Import | ast.ImportFrom) for statement in statements)
    return bool(statements) and (imports or any(words in source for words in BOOKKEEPING))


def notebook_page(notebook: Path, name: str) -> str:
    """Copy a notebook among the pages; its name there."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"] = [cell for cell in map(readable, content["cells"]) if cell is not None]
    content["metadata"] = {"kernelspec": content["metadata"].get("kernelspec", {}), "file_format": "mystnb"}
    write_if_changed(PAGES / f"{name}.ipynb", json.dumps(content, indent=1))
    return name


def cached_run(notebook: Path, parameters: dict) -> Path:
    """Where the executed copy of a notebook is kept, for this state of notebook, package and parameters."""
    return EXECUTED / f"{notebook.stem}-{inputs_digest(notebook, parameters)[:12]}.ipynb"


def executed(notebook: Path, values: dict | None = None, **depends_on: str) -> Path:
    """The notebook with outputs: run once for each state of what it depends on."""
    done = cached_run(notebook, {**(values or {}), **depends_on})
    if not done.is_file():
        print(f"Running {notebook.name}", flush=True)
        with atomic_path(done) as running:
            execute_notebook(notebook, running, values)
    return done


def library_page(notebook: Path, run: bool) -> str:
    """The page of a library notebook, with outputs when they are wanted or already there."""
    with_outputs = run or cached_run(notebook, {}).is_file()
    name = notebook.relative_to(NOTEBOOKS).with_suffix("").as_posix()
    return notebook_page(executed(notebook) if with_outputs else notebook, name)


@functools.cache
def modules_of(notebook: Path) -> tuple[str | None, frozenset[str]]:
    """The module that a notebook exports, if any, and those that it imports."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    exported = re.search(r"^#\| default_exp ([\w.]+)", code, re.M)
    imported = re.findall(r"^from deepfake_nb\.([\w.]+) import", code, re.M)
    return exported and exported[1], frozenset(imported)


def in_reading_order(notebooks: Iterable[Path]) -> list[Path]:
    """Notebooks by folder and number, and those of one number after what they stand on."""
    rooms = list(ROOMS)
    place = {
        n: (rooms.index(n.parent.name) if n.parent.name in rooms else len(rooms), n.name) for n in notebooks
    }
    ordered, waiting = [], sorted(place, key=place.get)
    while waiting:
        first, number = place[waiting[0]][0], waiting[0].name[:2]
        alike = [
            notebook for notebook in waiting if (place[notebook][0], notebook.name[:2]) == (first, number)
        ]
        exported = {modules_of(notebook)[0] for notebook in alike}
        first = next((n for n in alike if not modules_of(n)[1] & exported), alike[0])
        ordered.append(first)
        waiting.remove(first)
    return ordered


def section_page(report: Path, name: str) -> str:
    """The page of a section: as it ran, up to the cell where it failed, or without outputs when it has not been run."""
    kept = [report / "run.ipynb", report / "failed.ipynb", NOTEBOOKS / f"{name}.ipynb"]
    return notebook_page(next(path for path in kept if path.is_file()), name)


def start_page(reports: Path, contents: str) -> None:
    """The start page: what `index.ipynb` shows of the results of these reports, with the contents behind it."""
    results = load_results(reports).to_json()
    run = executed(NOTEBOOKS / "index.ipynb", {"reports": str(reports)}, results=results)
    index = json.loads(run.read_text(encoding="utf-8"))
    for cell in index["cells"]:
        if cell["cell_type"] == "code":
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "remove-input"]
    index["cells"].append({"cell_type": "markdown", "id": "contents", "metadata": {}, "source": contents})
    with_contents = EXECUTED / "index.ipynb"
    write_if_changed(with_contents, json.dumps(index))
    notebook_page(with_contents, "index")


def api_pages() -> list[str]:
    """One page a module, from its docstrings."""
    names = []
    for module in sorted((ROOT / "deepfake_nb").rglob("[a-z]*.py")):
        path = module.relative_to(ROOT / "deepfake_nb").with_suffix("").as_posix()
        title = f"deepfake_nb.{path.replace('/', '.')}"
        short = "import *" in module.read_text(
            encoding="utf-8"
        )  # what it names is documented where it is defined
        members = "" if short else "\n   :members:"
        directives = f"```{{eval-rst}}\n.. automodule:: {title}{members}\n```\n"
        write_if_changed(PAGES / "api" / f"{path}.md", f"# {path}\n\n`{title}`\n\n{directives}")
        names.append(f"api/{path}")
    return names


def guide_pages() -> list[str]:
    """The guides, as they are written in `docs/guides/`."""
    guides = sorted((ROOT / "docs" / "guides").glob("*.md"), key=lambda path: path.stem != "own_data")
    for guide in guides:
        write_if_changed(PAGES / "guides" / guide.name, guide.read_text(encoding="utf-8"))
    return [f"guides/{guide.stem}" for guide in guides]


def citation_page() -> str:
    """How to cite, from `CITATION.cff`."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = [paper_entry(paper) for paper in cited["references"]]
    fields = {"title": cited["title"], "author": names_of(cited["authors"]), "version": cited["version"]}
    lines = [
        "# How to cite",
        "",
        cited["message"],
        "",
        "```bibtex",
        *bibtex("software", "deepfake_nb", fields),
    ]
    lines += ["```", "", "The papers that are rebuilt:", "", *papers, ""]
    write_if_changed(PAGES / "cite.md", "\n".join(lines))
    return "cite"


def names_of(authors: list[dict]) -> str:
    """Authors as BibTeX has them."""
    return " and ".join(
        f"{{{a['name']}}}" if "name" in a else f"{a['given-names']} {a['family-names']}" for a in authors
    )


def bibtex(kind: str, key: str, fields: dict) -> list[str]:
    """The lines of an entry."""
    return [f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"]


def paper_entry(paper: dict) -> str:
    """One line of the list of papers."""
    authors = names_of(paper["authors"]).replace(" and ", ", ")
    return f"- {authors} ({paper['year']}): *{paper['title']}*. {paper['notes']}."


def commands_of(group, above: str = "") -> list[str]:
    """Every command below a group, by its full name, in the order of the help."""
    names = []
    for name, command in group.commands.items():
        names += commands_of(command, f"{above}{name} ") if hasattr(command, "commands") else [above + name]
    return names


def command_line_page() -> str:
    """Every command's own help."""
    command = str(Path(sys.executable).with_name("deepfake-nb"))
    environment = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    parts = ["# Command line\n"]
    for name in ("", *commands_of(typer.main.get_command(app))):
        words = [command, *name.split(), "--help"]
        help_text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
        parts.append(
            f"## `deepfake-nb {name}`".rstrip(" `")
            + "`\n\n```text\n"
            + inspect.cleandoc(help_text)
            + "\n```\n"
        )
    write_if_changed(PAGES / "command_line.md", "\n".join(parts))
    return "command_line"


def tree(caption: str, names: list[str]) -> str:
    """A table of contents, shown in the side bar only."""
    return "\n".join(
        [":::{toctree}", f":caption: {caption}", ":hidden:", ":maxdepth: 1", "", *names, ":::", ""]
    )


def empty_if_stale(folder: Path, digest: str) -> None:
    """Empty a folder that belongs to another state of the package: pages of source code keep links to what has moved."""
    stamp = folder / ".package"
    if not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        with write_atomically(stamp, "w") as file:
            file.write(digest)


def build(profile: str, run_library: bool) -> Path:
    """Put the pages together and run Sphinx over them.

    Returns
    -------
    Path
        The start page.
    """
    reports = ROOT / "reports" / profile
    sections = [section_page(reports / section, SECTIONS[section]) for section in available_sections()]
    notebooks = in_reading_order(NOTEBOOKS.rglob("[0-9]*.ipynb"))
    parts = {"Guides": guide_pages(), "Paper sections": sections, "Verdicts": []}
    parts |= {title: [] for title in ROOMS.values()}
    for notebook in notebooks:
        if notebook.stem not in SECTIONS.values():
            parts[ROOMS.get(notebook.parent.name, "Verdicts")].append(library_page(notebook, run_library))
    parts["Reference"] = [command_line_page(), citation_page(), *api_pages()]
    contents = "".join(tree(caption, names) for caption, names in parts.items())
    names = ["index", *(name for part in parts.values() for name in part)]
    start_page(reports, contents)
    pages = {PAGES / name for name in names}
    for stale in {
        path for path in PAGES.rglob("*.*") if path.is_file() and path.with_suffix("") not in pages
    }:
        stale.unlink()
    site, trees = reports / "site", ROOT / "docs" / "_build" / "doctrees"
    of_package = inputs_digest(ROOT / "docs" / "conf.py", {})
    for folder in (site, trees):
        empty_if_stale(folder, of_package)
    command = [sys.executable, "-m", "sphinx", "-q", "-j", "2", "-b", "html", "-c", str(ROOT / "docs")]
    subprocess.run([*command, "-d", str(trees), str(PAGES), str(site)], check=True)
    return site / "index.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo", choices=[*PROFILES, "reference"])
    parser.add_argument("--library", action="store_true", help="run the library notebooks for their outputs")
    arguments = parser.parse_args()
    print(f"Site: {build(arguments.profile, arguments.library)}")


if __name__ == "__main__":
    main()
