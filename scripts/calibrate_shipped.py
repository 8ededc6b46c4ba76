"""Calibrate the two detectors of rendered people on others whom neither has seen, and say how it went.

    python scripts/calibrate_shipped.py --work out/calibration

Films and images that are there already are kept. On one core they take some twenty minutes, and scoring them three.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from deepfake_nb.evaluation.calibration import write_calibrations
from deepfake_nb.evaluation.metrics import auc, expected_calibration_error
from deepfake_nb.evaluation.out_of_distribution import COARSE
from deepfake_nb.media.video import read_frames, read_image, write_video
from deepfake_nb.people.swapping import pair_identities
from deepfake_nb.scoring.fit_calibration import calibrate, find_labelled_media, gather
from deepfake_nb.scoring.score import RENDERED, open_scorer
from deepfake_nb.sections.filming import Camera, Shot, shoot, shoot_portraits, shoot_stills
from deepfake_nb.study.files import atomic_path, random_stream

FRAMES = 20
LARGE = 192  # pixels; faces from here on are told apart in what is printed


class Film(NamedTuple):
    """A group of films; with a `frame`, its height and width, they are shown enlarged as a part of that and written again."""

    domain: str
    quality: str
    call: bool
    crf: int
    side: int
    frame: tuple | None = None


class Picture(NamedTuple):
    """A group of images; `frame` as for films."""

    domain: str
    quality: str
    ending: str
    side: int
    frame: tuple | None = None


FILMS = (
    Film("studio", "crude", False, 18, 192),
    Film("studio", "celebrity", False, 23, 256),
    Film("wild", "live", False, 23, 192),
    Film("wild", "celebrity", False, 28, 160),
    Film("conference", "live", True, 23, 192),
    Film("conference", "celebrity", True, 18, 256),
    Film("studio", "live", False, 20, 384),
    Film("wild", "crude", False, 26, 384),
    Film("conference", "crude", True, 23, 320),
    Film("studio", "celebrity", False, 23, 192, (720, 1280)),
    Film("wild", "live", False, 28, 256, (480, 854)),
    Film("celebrity", "celebrity", False, 20, 384, (720, 1280)),
)
PICTURES = (
    Picture("studio", "crude", "jpg", 256),
    Picture("studio", "celebrity", "png", 320),
    Picture("wild", "live", "jpg", 256),
    Picture("wild", "celebrity", "png", 192),
    Picture("celebrity", "crude", "jpg", 320),
    Picture("celebrity", "live", "png", 256),
    Picture("conference", "celebrity", "jpg", 256),
    Picture("conference", "live", "png", 384),
    Picture("studio", "live", "jpg", 768),
    Picture("wild", "crude", "jpg", 640),
    Picture("celebrity", "celebrity", "png", 512),
    Picture("studio", "celebrity", "jpg", 192, (720, 1280)),
    Picture("wild", "live", "jpg", 320, (480, 854)),
)
WORDS = {
    "video": "rendered people in a studio, outdoors, on a stage and in video calls, in frames of 160 pixels to 720p, each as "
    "filmed and with another one's face; no living person is among them",
    "picture": "rendered people in a studio, outdoors, on a stage and in video calls, in images of 192 pixels to 720p, each "
    "as pictured and with another one's face, and faces that a small generator drew; no living person is among them",
}


def shots_of(group, count, ending, seed):
    """Everybody of a group, as filmed and with the face of somebody else of the group."""
    names = [f"{group}-{number:02d}" for number in range(count)]
    pairs = pair_identities(names, random_stream(seed, "pairs", group))
    source_of = dict(zip(pairs.target_id, pairs.source_id, strict=True))
    return [Shot(n, f"real/{n}/as-taken.{ending}", ((source_of[n], f"fake/{n}/swapped.{ending}"),)) for n in names]  # fmt: skip


def shown_larger(images, shape, rng):
    """Frames of a larger film in which a small one is shown enlarged, in one place, before a blur of its colours.

    The blur is made of so few of them that nobody sees a second face in it.
    """
    side, grain = round(shape[0] * rng.uniform(0.45, 1)), rng.integers(0, 6, (*shape, 3), np.uint8)
    y, x = (int(rng.integers(length - side + 1)) for length in shape)
    how = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(3)]
    colours = cv2.resize(images[0], (4, 4), interpolation=cv2.INTER_AREA)
    background = cv2.add(cv2.resize(colours, shape[::-1], interpolation=cv2.INTER_CUBIC), grain)
    for image in images:
        frame = background.copy()
        frame[y : y + side, x : x + side] = cv2.resize(image, (side, side), interpolation=how)
        yield frame


def reframe(source, target, group, rng):
    """Write a film or image again as a part of a larger one, in one of the qualities that people send."""
    if isinstance(group, Film):
        frames = shown_larger([frame.image for frame in read_frames(source)], group.frame, rng)
        write_video(target, frames, 25, crf=group.crf + int(rng.integers(-3, 4)))
        return
    (image,) = shown_larger([read_image(source)], group.frame, rng)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
    with atomic_path(target) as temporary:
        temporary.write_bytes(cv2.imencode(target.suffix, image[..., ::-1], quality)[1].tobytes())


def reframe_all(shots, plain, folder, group, seed):
    """Write all media of a group as parts of larger ones; a person's genuine and forged one lie in the same place."""
    for shot in shots:
        for path in (shot.real, *(path for _, path in shot.fakes)):
            if not (folder / path).is_file():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                reframe(plain / path, folder / path, group, random_stream(seed, "frame", shot.person))


def make_group(shooting, camera, shots, group, folder):
    """Take the shots of one group; the media of one that is shown larger are kept apart as they were taken."""
    masks = folder.with_name(f"{folder.name}-masks")
    plain = folder.with_name(f"{folder.name}-small") if group.frame else folder
    shooting(camera, shots, plain, masks)
    if group.frame:
        reframe_all(shots, plain, folder, group, camera.seed)
    print(folder.name, *group, flush=True)


def make_films(work, part, count, seed):
    """Films of `count` people a group."""
    for number, group in enumerate(FILMS):
        crf = 12 if group.frame else group.crf  # what is written again came in a good quality
        camera = Camera(group.domain, FRAMES, group.side, quality=group.quality, channel=group.call, crf=(crf, crf),
                        seed=seed, cast=f"calibration-{part}")  # fmt: skip
        make_group(
            shoot, camera, shots_of(f"film{number}", count, "mp4", seed), group, work / f"video-{part}"
        )


def make_pictures(work, part, count, seed):
    """Pictures of `count` people a group, and as many small portraits and faces of nobody."""
    folder, cast = work / f"picture-{part}", f"calibration-{part}"
    for number, group in enumerate(PICTURES):
        camera = Camera(group.domain, 1, group.side, quality=group.quality, seed=seed, cast=cast)
        shots = shots_of(f"still{number}", count, group.ending, seed)
        make_group(shoot_stills, camera, shots, group, folder)
    names = [f"portrait-{number:02d}" for number in range(count)]
    portraits = [Shot(name, f"real/{name}/as-taken.jpg") for name in names]
    drawn = [Shot(name, None, ((name, f"fake/{name}/drawn.jpg"),)) for name in names]
    shoot_portraits(
        Camera("wild", 1, 256, seed=seed, cast=cast, truncation=0.8),
        portraits + drawn,
        folder,
        folder.with_name(f"{folder.name}-masks"),
    )


def tested(calibration, table):
    """How a calibration does on media of people it has not seen, and on small and large faces among them apart.

    A row of `table` is a media file and a detector.
    """
    wide = table.pivot(index="media_id", columns="detector", values="score").dropna()
    about = table.drop_duplicates("media_id").set_index("media_id").loc[wide.index]
    large = np.array([2 ** row[COARSE - 1] >= LARGE for row in about.statistics])
    parts = {"all": large | ~large, f"faces below {LARGE} pixels": ~large, "larger faces": large}
    return {name: figures(calibration, wide[part], about[part]) for name, part in parts.items() if part.any()}


def figures(calibration, wide, about):
    """Counts, the share that is unlike the calibration, and what each set of detectors is worth."""
    labels = about.label.to_numpy(int)
    unlike = np.array([calibration.familiarity.distance(row)[0] > 1 for row in about.statistics])
    found = {"media": len(wide), "fakes": int(labels.sum()), "people": about.person.nunique(),
             "unlike the calibration": round(float(unlike.mean()), 3)}  # fmt: skip
    for names in calibration.combinations:
        scores = [{name: row[name] for name in names.split(" + ")} for _, row in wide.iterrows()]
        found[names] = figures_of_detectors(calibration, scores, labels)
    return found


def figures_of_detectors(calibration, scores, labels):
    """AUC, calibration error, and the alarms on genuine and forged media at some stated rates."""
    together = np.array([calibration.score(score) for score in scores])
    probability = np.array([calibration.probability(score).value for score in scores])
    found = {
        "auc": auc(labels, together),
        "calibration error": expected_calibration_error(labels, probability),
    }
    for rate in (0.05, 0.1, 0.2):
        called = together >= calibration.threshold(scores[0], rate).score
        shares = {"genuine": float(called[labels == 0].mean()), "fakes": float(called[labels == 1].mean())}
        found[f"called fake at {rate:g}"] = {name: round(share, 3) for name, share in shares.items()}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for films and pictures")
    for kind, people in (("filmed", (10, 6)), ("pictured", (14, 10))):
        words = f"people {kind} in each group, to fit and to test on"
        parser.add_argument(f"--{kind}", type=int, nargs=2, default=people, help=words)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only-film", action="store_true", help="make films and images, and stop")
    parser.add_argument("--out", type=Path, default=Path("deepfake_nb/weights_shipped"))
    options = parser.parse_args()
    for make, counts in ((make_films, options.filmed), (make_pictures, options.pictured)):
        for part, count in zip(("fit", "test"), counts, strict=True):
            make(options.work, part, count, options.seed)
    if options.only_film:
        sys.exit()
    for kind, detectors in (("picture", "rendered-faces"), ("video", RENDERED)):
        scorer = open_scorer(detectors, calibration=False)
        tables = {}
        for part in ("fit", "test"):
            tables[part], left_out = gather(find_labelled_media(options.work / f"{kind}-{part}"), scorer)
            print(f"{kind}s to {part} on: {tables[part].media_id.nunique()}, without a score: {len(left_out)}", *left_out[:3], flush=True)  # fmt: skip
        (calibration,), _ = calibrate(tables["fit"], scorer, WORDS[kind])
        write_calibrations(options.out / f"calibration-{kind}.json", calibration)
        print(json.dumps(tested(calibration, tables["test"]), indent=1), flush=True)


if __name__ == "__main__":
    main()
