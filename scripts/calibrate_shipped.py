"""Calibrate the two detectors that come with the package on rendered people whom neither has seen, and say how it went.

    python scripts/calibrate_shipped.py --work out/calibration

Films and pictures that are there already are kept. On one core they take about ten minutes, and scoring them five.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from deepfake_nb.calibration import write_calibrations
from deepfake_nb.filming import Camera, Shot, shoot, shoot_portraits, shoot_stills
from deepfake_nb.forgery import pair_identities
from deepfake_nb.metrics import auc, expected_calibration_error
from deepfake_nb.score import DEFAULT, calibrate, gather, media_in, open_scorer
from deepfake_nb.study import random_stream

FRAMES = 20
FILMS = (  # domain, quality of the swap, whether it went through a call, CRF, side in pixels
    ("studio", "crude", False, 18, 192),
    ("studio", "celebrity", False, 23, 256),
    ("wild", "live", False, 23, 192),
    ("wild", "celebrity", False, 28, 160),
    ("conference", "live", True, 23, 192),
    ("conference", "celebrity", True, 18, 256),
)
PICTURES = (  # domain, quality of the swap, ending, side in pixels
    ("studio", "crude", "jpg", 256),
    ("studio", "celebrity", "png", 320),
    ("wild", "live", "jpg", 256),
    ("wild", "celebrity", "png", 192),
    ("celebrity", "crude", "jpg", 320),
    ("celebrity", "live", "png", 256),
    ("conference", "celebrity", "jpg", 256),
    ("conference", "live", "png", 384),
)
WORDS = {
    "video": "rendered people in a studio, outdoors and in video calls, each as filmed and with another one's face; no living "
    "person is among them",
    "picture": "rendered people in a studio, outdoors, on a stage and in video calls, each as pictured and with another one's "
    "face, and faces that a small generator drew; no living person is among them",
}


def shots_of(group, count, ending, seed):
    """Everybody of a group, as filmed and with the face of somebody else of the group."""
    names = [f"{group}-{number:02d}" for number in range(count)]
    pairs = pair_identities(names, random_stream(seed, "pairs", group))
    source_of = dict(zip(pairs.target_id, pairs.source_id, strict=True))
    return [Shot(n, f"real/{n}/as-taken.{ending}", ((source_of[n], f"fake/{n}/swapped.{ending}"),)) for n in names]  # fmt: skip


def make_films(work, part, count, seed):
    """Films of `count` people a group."""
    folder, masks, cast = work / f"video-{part}", work / f"video-{part}-masks", f"calibration-{part}"
    for number, (domain, quality, channel, crf, side) in enumerate(FILMS):
        camera = Camera(
            domain, FRAMES, side, quality=quality, channel=channel, crf=(crf, crf), seed=seed, cast=cast
        )
        shoot(camera, shots_of(f"film{number}", count, "mp4", seed), folder, masks)
        print(folder.name, *FILMS[number], flush=True)


def make_pictures(work, part, count, seed):
    """Pictures of `count` people a group, and as many small portraits and faces of nobody."""
    folder, masks, cast = work / f"picture-{part}", work / f"picture-{part}-masks", f"calibration-{part}"
    for number, (domain, quality, ending, side) in enumerate(PICTURES):
        camera = Camera(domain, 1, side, quality=quality, seed=seed, cast=cast)
        shoot_stills(camera, shots_of(f"still{number}", count, ending, seed), folder, masks)
        print(folder.name, *PICTURES[number], flush=True)
    names = [f"portrait-{number:02d}" for number in range(count)]
    portraits = [Shot(name, f"real/{name}/as-taken.jpg") for name in names]
    drawn = [Shot(name, None, ((name, f"fake/{name}/drawn.jpg"),)) for name in names]
    shoot_portraits(
        Camera("wild", 1, 256, seed=seed, cast=cast, truncation=0.8), portraits + drawn, folder, masks
    )


def tested(calibration, table):
    """How a calibration does on media of people it has not seen; a row of `table` is a media file and a detector."""
    wide = table.pivot(index="media_id", columns="detector", values="score").dropna()
    about = table.drop_duplicates("media_id").set_index("media_id").loc[wide.index]
    labels, found = about.label.to_numpy(int), {}
    unlike = np.array([calibration.familiarity.distance(row)[0] > 1 for row in about.statistics])
    for names in calibration.combinations:
        chosen = names.split(" + ")
        scores = [{name: row[name] for name in chosen} for _, row in wide.iterrows()]
        together = np.array([calibration.score(score) for score in scores])
        probability = np.array([calibration.probability(score).value for score in scores])
        alarms = {rate: float((together[labels == 0] >= calibration.threshold(chosen, rate).score).mean()) for rate in (0.05, 0.1, 0.2)}  # fmt: skip
        hits = {rate: float((together[labels == 1] >= calibration.threshold(chosen, rate).score).mean()) for rate in alarms}  # fmt: skip
        found[names] = {"auc": auc(labels, together), "calibration error": expected_calibration_error(labels, probability),
                        "false alarms at a stated rate": alarms, "fakes found at it": hits}  # fmt: skip
    counts = {"media": len(wide), "fakes": int(labels.sum()), "people": about.person.nunique()}
    return counts | {"unlike the calibration": float(unlike.mean()), "detectors": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for films and pictures")
    for kind, people in (("filmed", (10, 6)), ("pictured", (14, 10))):
        words = f"people {kind} in each group, to fit and to test on"
        parser.add_argument(f"--{kind}", type=int, nargs=2, default=people, help=words)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only-film", action="store_true", help="make films and pictures, and stop")
    parser.add_argument("--out", type=Path, default=Path("deepfake_nb/weights_shipped"))
    options = parser.parse_args()
    for make, counts in ((make_films, options.filmed), (make_pictures, options.pictured)):
        for part, count in zip(("fit", "test"), counts, strict=True):
            make(options.work, part, count, options.seed)
    if options.only_film:
        sys.exit()
    for kind, detectors in (("picture", "rendered-faces"), ("video", DEFAULT)):
        scorer = open_scorer(detectors, calibration=False)
        tables = {}
        for part in ("fit", "test"):
            tables[part], left_out = gather(media_in(options.work / f"{kind}-{part}"), scorer)
            print(f"{kind}s to {part} on: {tables[part].media_id.nunique()}, without a score: {len(left_out)}", *left_out[:3], flush=True)  # fmt: skip
        (calibration,) = calibrate(tables["fit"], scorer, WORDS[kind])
        write_calibrations(options.out / f"calibration-{kind}.json", calibration)
        print(json.dumps(tested(calibration, tables["test"]), indent=1), flush=True)


if __name__ == "__main__":
    main()
