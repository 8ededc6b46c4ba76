"""Make the base model of the AltFreezing section that comes with the package, from rendered people, and say how.

    python scripts/train_base.py --work out/base

An interrupted call goes on where it stopped. On two cores the films take about a quarter of an hour and the training
as long again with --precision bf16, where the processor has it; without, twice that.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import torch

from deepfake_nb.evaluation.decisions import fit_calibration
from deepfake_nb.evaluation.metrics import evaluate
from deepfake_nb.evaluation.predictions import pool
from deepfake_nb.learning.clips import ClipSet, clip_predictions
from deepfake_nb.networks.video_resnet import save_video_resnet
from deepfake_nb.sections.clip_training import BASE_SETTINGS, make_base_set, train_base

LENGTH, SIZE, WIDTH = 16, 96, 16
WORDS = (
    "rendered people only: {people} of them filmed in a studio, each also with another one's face, swapped in a crude and in a "
    "fine way; it has never seen a real person"
)


class Tell:
    """Prints each epoch's record."""

    def on_epoch_end(self, trainer, epoch, record):
        numbers = {name: round(value, 4) for name, value in record.items() if isinstance(value, float)}
        print(f"epoch {epoch}: {numbers}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for films, clips and checkpoints")
    parser.add_argument("--people", type=int, default=150)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=BASE_SETTINGS.epochs)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument(
        "--out", type=Path, default=Path("deepfake_nb/weights_shipped/altfreezing-base.safetensors")
    )
    options = parser.parse_args()
    built = make_base_set(options.people, options.frames, seed=options.seed, root=options.work)
    settings = replace(BASE_SETTINGS, epochs=options.epochs, precision=options.precision, seed=options.seed)
    trainer = train_base(built.folder, settings, width=WIDTH, length=LENGTH, size=SIZE, folder=options.work / "training",
                         cache=options.work / "clips", hooks=[Tell()])  # fmt: skip
    ship(trainer, built, options)


def ship(trainer, built, options):
    """Write the weights, with how they were made and how well they do on people who were not in training."""
    clips = ClipSet(built.folder, LENGTH, LENGTH, split="val", size=SIZE)
    network = copy.deepcopy(trainer.network).half()
    trainer.network.load_state_dict(network.state_dict())  # what is measured below is what is shipped
    predictions = clip_predictions(trainer.network, clips, "base model", "ffpp-base", "ffpp-base")
    media = pool(predictions)
    curve = fit_calibration(media.label, media.score, "platt", split=["val"] * len(media))
    found = evaluate(predictions, 0.5)
    area = found.values["auc"]
    made = {
        "command": f"python scripts/train_base.py --people {options.people} --frames {options.frames} --seed {options.seed} "
        f"--epochs {options.epochs} --precision {options.precision}",
        "training_seconds": round(sum(record["seconds"] for record in trainer.log.records)),
        "best_epoch": trainer.log.best_epoch, "calibration": curve.as_dict(), "torch": torch.__version__,
        "validation": {"videos": found.n, "fakes": found.n_fake, "auc": area.value, "low": area.low, "high": area.high},
    }  # fmt: skip
    words = WORDS.format(people=options.people)
    save_video_resnet(options.out, network, words, clip_length=LENGTH, size=SIZE, made=made)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, AUC {found.values['auc']}")


if __name__ == "__main__":
    main()
