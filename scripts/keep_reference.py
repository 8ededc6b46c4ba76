"""Keep a profile's reports as the committed reference run: `python scripts/keep_reference.py [PROFILE]`.

Copies results, predictions, run records, figures and executed notebooks to `reports/reference/`, without the folders of the
machine they were made on. Images are kept small: with 256 colours, or as JPEG within a notebook where that is smaller.
"""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from deepfake_nb.study.files import cache_dir, write_atomically
from deepfake_nb.study.runner import available_sections

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("predictions.parquet", "robustness.parquet")


def without_machine(text: str) -> str:
    """Text with this machine's folders replaced by what they are."""
    places = {str(cache_dir()): "<cache>", str(ROOT): "<checkout>", str(Path.home()): "~"}
    for folder, name in places.items():
        text = text.replace(folder, name)
    return text


def in_256_colours(picture: bytes) -> bytes:
    """A PNG with a palette, or as it was where that is smaller."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        colours = image.convert("RGB")
    palette = colours.quantize(256)
    colours.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(small, "PNG", optimize=True)
    return min(small.getvalue(), picture, key=len)


def as_jpeg(picture: bytes) -> bytes:
    """A JPEG of quality 85."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").save(small, "JPEG", quality=85, optimize=True)
    return small.getvalue()


def with_small_picture(data: dict) -> dict:
    """An output's data with its image as PNG or JPEG, whichever is smaller."""
    if "image/png" not in data:
        return data
    picture = base64.b64decode("".join(data["image/png"]))
    png, jpeg = in_256_colours(picture), as_jpeg(picture)
    kind, small = ("image/png", png) if len(png) <= len(jpeg) else ("image/jpeg", jpeg)
    rest = {name: value for name, value in data.items() if name != "image/png"}
    return rest | {kind: base64.b64encode(small).decode()}


def executed_notebook(path: Path) -> str:
    """An executed notebook without papermill's records of where and when."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = {"tags": tags} if tags else {}
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = with_small_picture(output["data"])
        if "injected-parameters" not in tags:
            cells.append(cell)
    notebook["cells"] = cells
    return without_machine(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def keep(source: Path, target: Path) -> None:
    """Copy one section's report."""
    shutil.rmtree(target, ignore_errors=True)
    for figure in sorted((source / "figures").glob("*.png")):
        with write_atomically(target / "figures" / figure.name) as file:
            file.write(in_256_colours(figure.read_bytes()))
    for name in TABLES:
        if (source / name).is_file():
            shutil.copy(source / name, target)
    for name in ("results.json", "run.json"):
        with write_atomically(target / name, "w") as file:
            file.write(without_machine((source / name).read_text(encoding="utf-8")))
    with write_atomically(target / "run.ipynb", "w") as file:
        file.write(executed_notebook(source / "run.ipynb"))


def main() -> None:
    reports = ROOT / "reports" / (sys.argv[1] if len(sys.argv) > 1 else "demo")
    done = [section for section in available_sections() if (reports / section / "inputs.json").is_file()]
    if not done:
        sys.exit(f"No section was run to its end in {reports.relative_to(ROOT)}. Run `make study` first.")
    for section in done:
        target = ROOT / "reports" / "reference" / section
        keep(reports / section, target)
        print(f"Kept {target.relative_to(ROOT)}")
    about = reports / "study.json"
    if about.is_file() and set(json.loads(about.read_text())["sections"]) == set(available_sections()):
        shutil.copy(about, ROOT / "reports" / "reference")
    print("The README's table is made from it by: python scripts/readme_table.py")


if __name__ == "__main__":
    main()
