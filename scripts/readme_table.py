"""Write what the reference run found into the README, between its markers: `python scripts/readme_table.py`.

Nothing there is typed: the tables are made from `reports/reference/`, and a test compares them.
"""

import json
import re
from pathlib import Path

from deepfake_nb.leaderboard import headline_table
from deepfake_nb.published import VERDICTS, compare_with_published, summary
from deepfake_nb.study import InputError, load_results, write_atomically

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "reports" / "reference"
MARKED = re.compile(r"(<!-- (headline|run) -->\n).*?(\n<!-- end of \2 -->)", re.S)


def headline() -> str:
    """The best detectors of each test set, and what became of the papers' numbers."""
    try:
        table = headline_table(REFERENCE)
    except InputError:
        return "*The reference run has no leaderboard yet.*"
    counts = summary(compare_with_published(load_results(REFERENCE))).loc["all"]
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{table.strip()}\n\nOf the {counts.numbers} numbers that the papers print: {verdicts}."


def run() -> str:
    """How long the reference run took, and with how much memory."""
    path = REFERENCE / "study.json"
    if not path.is_file():
        return "*The reference run was not timed as a whole.*"
    about = json.loads(path.read_text(encoding="utf-8"))
    where = json.loads((REFERENCE / about["sections"][0] / "run.json").read_text(encoding="utf-8"))["device"]
    return (
        f"The reference run: {len(about['sections'])} sections at profile {about['profile']}, {about['jobs']} at a time, on "
        f"{where}: {about['seconds'] / 60:.0f} minutes, {about['peak_memory_gib']:.1f} GiB for all processes together."
    )


def with_tables(readme: str) -> str:
    """The README's text with what the reference run says now."""
    parts = {"headline": headline(), "run": run()}

    def filled(found):
        return found[1] + parts[found[2]] + found[3]

    return MARKED.sub(filled, readme)


def main() -> None:
    readme = ROOT / "README.md"
    text = with_tables(readme.read_text(encoding="utf-8"))
    with write_atomically(readme, "w") as file:
        file.write(text)
    print("README.md says what reports/reference/ holds.")


if __name__ == "__main__":
    main()
