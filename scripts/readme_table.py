"""Write what the reference run and the trained detectors found into the README, between its markers: `python scripts/readme_table.py`.

Nothing there is typed: the tables are made from `reports/`, and a test compares them.
"""

import json
import re
from pathlib import Path

import pandas as pd

from deepfake_nb.detectors.held_out import auc_by_source, format_auc, select_main_predictions
from deepfake_nb.detectors.model_cards import add_genuine
from deepfake_nb.sections.leaderboard import headline_table
from deepfake_nb.study.files import InputError, write_atomically
from deepfake_nb.study.published import VERDICTS, compare_with_published, count_verdicts
from deepfake_nb.study.records import load_results

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "reports" / "reference"
MARKED = re.compile(r"(<!-- (headline|detectors|run) -->\n).*?(\n<!-- end of \2 -->)", re.S)


def headline() -> str:
    """The best detectors of each test set, and what became of the papers' numbers."""
    try:
        table = headline_table(REFERENCE)
    except InputError:
        return "*The reference run has no leaderboard yet.*"
    counts = count_verdicts(compare_with_published(load_results(REFERENCE))).loc["all"]
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{table.strip()}\n\nOf the {counts.numbers} numbers that the papers print: {verdicts}."


WORDS = {
    "video_calls": "live swaps in video calls", "celebdf": "Celeb-DF", "ffpp_c23": "FaceForensics++, c23",
    "ffpp_c40": "FaceForensics++, c40", "modern_swap": "five modern swaps", "classic_swap": "3D-model and thin-plate swaps",
    "lip_sync": "new lips", "openforensics": "OpenForensics, images",
}  # fmt: skip


def detectors() -> str:
    """AUC of the detectors of real people on media that were left out of their training."""
    columns = {}
    for name in ("edited-faces", "small-faces"):
        path = ROOT / "reports" / "detectors" / name / "predictions.csv"
        if path.is_file():
            found = auc_by_source(select_main_predictions(pd.read_csv(path)))
            columns |= {
                (name, held_out): part.set_index("source") for held_out, part in found.groupby("held_out")
            }
    if not columns:
        return "*The detectors of real people have not been trained yet.*"
    order = [("edited-faces", "people"), ("edited-faces", "source"), ("small-faces", "source")]
    heads = [
        "files (people)",
        "`edited-faces`, new people",
        "`edited-faces`, new source",
        "`small-faces`, new source",
    ]
    lines = ["| media of real people | " + " | ".join(heads) + " |", "|---|" + "--:|" * 4]
    for source, words in WORDS.items():
        tables = [columns.get(key) for key in order]
        known = [
            table.loc[source] if table is not None and source in table.index else None for table in tables
        ]
        first = next((row for row in known if row is not None), None)
        if first is not None:
            cells = ["" if row is None else format_auc(row) for row in known]
            lines.append(f"| {words} | {first.n} ({first.people}) | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *new_generators()])


def new_generators() -> list[str]:
    """The range of AUC of `generated-faces` over generators that were left out of its training."""
    path = ROOT / "reports" / "detectors" / "generated-faces" / "predictions.csv"
    if not path.is_file():
        return []
    rows = select_main_predictions(pd.read_csv(path))
    found = auc_by_source(add_genuine(rows[rows.held_out == "source"]), "method", resamples=20).sort_values(
        "auc"
    )
    worst, best = found.iloc[0], found.iloc[-1]
    return [
        "",
        f"`generated-faces` on images of a generator that was left out: AUC {worst.auc:.2f} ({worst.method}) to "
        f"{best.auc:.2f} ({best.method}), {len(found)} generators.",
    ]


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
    parts = {"headline": headline(), "detectors": detectors(), "run": run()}

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
