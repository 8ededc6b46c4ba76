"""Clean and format the notebooks, then export the package from them: `make export`."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


def clear_outputs(notebook: Path) -> None:
    """Drop what a run left in a notebook: executed notebooks live in `reports/`."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        clear_outputs(notebook)
    run("ruff", "format", "--quiet", "nbs")
    subprocess.run([str(Path(sys.executable).with_name("nbdev_clean"))], cwd=ROOT, check=True)
    subprocess.run([str(Path(sys.executable).with_name("nbdev_export"))], cwd=ROOT, check=True)
    run("ruff", "format", "--quiet", "deepfake_nb")
    run("ruff", "check", "nbs", "deepfake_nb", "tests", "benchmarks", "scripts", "docs")


if __name__ == "__main__":
    main()
