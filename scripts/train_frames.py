"""Make the frame detector that comes with the package, `rendered-faces`, from rendered people, and say how.

    python scripts/train_frames.py --work out/base

An interrupted call goes on where it stopped. The folder may be that of scripts/train_base.py: its films are taken as
they are, and made where they are not there. On one core, films apart, the faces take about ten minutes and the
training, with --precision bf16 where the processor has it, as long again.
"""

import argparse
import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from deepfake_nb.data.builds import FaceSet
from deepfake_nb.evaluation.metrics import auc
from deepfake_nb.learning.generator import draw_faces, shipped_networks
from deepfake_nb.learning.training import Trainer, TrainingSettings, binary_cross_entropy, fake_scores
from deepfake_nb.media.degradations import brightness, jpeg
from deepfake_nb.media.faces import align_ffhq, ffhq_transform, fit_similarity, transform_points, warp
from deepfake_nb.media.images import Normalise
from deepfake_nb.media.video import read_frames, recompress_frames
from deepfake_nb.networks.devices import seeded
from deepfake_nb.networks.frame_network import FrameNetwork, standard_points
from deepfake_nb.networks.weights import save_network
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills
from deepfake_nb.people.swapping import SourceFace, swap_face
from deepfake_nb.sections.clip_training import make_base_set
from deepfake_nb.study.files import atomic_path, random_seed, random_stream, sha256_of

SIZE, MARGIN, CHUNK = 112, 24, 16  # side of a network's crop, what is kept around it, people drawn at once
STORED = SIZE + 2 * MARGIN
CAST = "rendered-faces"  # nobody of it is in another set
DOMAINS, VALIDATION_CHUNKS, STEP = ("conference", "celebrity"), 4, 6
NETWORK = {"backbone": "resnet10t", "channels": [32, 64, 128, 192], "stem_width": 16, "size": SIZE}
UNIT_RANGE = Normalise((0, 0, 0), (1, 1, 1))
WORDS = (
    "rendered people only: {people} of them, filmed in a studio or pictured in a video call, on a stage and outdoors, each also "
    "with other people's faces swapped in, and faces that a small generator drew; it has never seen a real person"
)


def cut(image, landmarks):
    """A face with a margin, uint8 (STORED, STORED, 3)."""
    matrix = fit_similarity(standard_points(SIZE) + MARGIN, np.asarray(landmarks))
    return warp(image, cv2.invertAffineTransform(matrix), STORED)


def coded(images, rng):
    """Pictures of one person as they come out of one camera: by JPEG, by H.264, or untouched."""
    way = rng.choice(["h264", "jpeg", "none"], p=[0.5, 0.3, 0.2])
    if way == "h264":
        crf = int(rng.integers(16, 33))
        return [recompress_frames([image], crf=crf)[0] for image in images]
    return jpeg(np.stack(images), int(rng.integers(55, 97))) if way == "jpeg" else images


def swaps(image, points, others, rng):
    """An image with two other faces and with its own, each in another quality; kinds and images."""
    for number, (other, theirs) in enumerate(others):
        quality = [rng.uniform(0, 0.5), rng.uniform(0.5, 1)][number]
        kind = "crude swap" if number == 0 else "fine swap"
        yield kind, swap_face(image, points, SourceFace(other, theirs), quality=quality, rng=rng)[0]
    own = brightness(image, rng.choice([rng.uniform(0.75, 0.93), rng.uniform(1.07, 1.25)]))
    spread = 0.03 * np.linalg.norm(points[1] - points[0])
    moved = points + rng.normal(0, spread, points.shape)
    yield "self-swap", swap_face(image, points, SourceFace(own, moved), quality=rng.uniform(0, 1), rng=rng)[0]


def still_faces(number, domain, seed):
    """Faces of the people of one chunk, pictured in one domain: real, and forged in three ways; crops and table."""
    people = range(CHUNK * number, CHUNK * (number + 1))
    names = [f"still-{person:04d}" for person in people]
    identities = [random_identity(random_seed(seed, CAST, name)) for name in names]
    stills = render_stills(identities, domain, seed=random_seed(seed, CAST, domain, number))
    rng, crops, rows = random_stream(seed, CAST, "forge", domain, number), [], []
    turns = rng.permutation(CHUNK)
    for place, (image, points) in enumerate(zip(stills.images, stills.landmarks, strict=True)):
        at = int(np.flatnonzero(turns == place)[0])
        chosen = [turns[(at + step) % CHUNK] for step in (1, 5)]
        others = [(stills.images[other], stills.landmarks[other]) for other in chosen]
        kinds, images = zip(("real", image), *swaps(image, points, others, rng), strict=True)
        crops += [cut(picture, points) for picture in coded(images, rng)]
        rows += [(names[place], domain, kind) for kind in kinds]
    if domain == "wild":
        small, more = small_faces(stills, names, rng)
        crops, rows = crops + small, rows + more
    return np.stack(crops), pd.DataFrame(rows, columns=["person", "domain", "kind"])


def small_faces(stills, names, rng):
    """Small portraits of people, and as many of nobody drawn by the package's generator, cut by the same points."""
    generator = shipped_networks().generator
    nobodies = draw_faces(generator, len(names), rng, strength=rng.uniform(0.7, 1))
    crops, rows = [], []
    for name, image, points, nobody in zip(names, stills.images, stills.landmarks, nobodies, strict=True):
        small = align_ffhq(image, points, generator.resolution)
        pair = [cv2.resize(picture, (256, 256), interpolation=cv2.INTER_CUBIC) for picture in (small, nobody)]
        points = transform_points(ffhq_transform(points, 256), points)
        crops += [cut(picture, points) for picture in coded(pair, rng)]
        rows += [(name, "portrait", "real"), (name, "portrait", "generated")]
    return crops, rows


def film_faces(faces, row, seed, frames=4):
    """Faces in some frames of a film, as the face detector found them; crops and table."""
    film, track = faces.manifest.iloc[row], faces.tracks(row)[0]
    rng = random_stream(seed, CAST, "frames", film.media_id)
    chosen = np.sort(rng.choice(len(track), min(frames, len(track)), replace=False))
    points = dict(zip(track.frame_indices[chosen].tolist(), track.landmarks[chosen], strict=True))
    path = Path(faces.manifest.attrs["root"]) / film.path
    crops = [cut(frame.image, points[frame.index]) for frame in read_frames(path, indices=sorted(points))]
    kind = {"original": "real", "FaceSwap": "crude swap", "Deepfakes": "fine swap"}.get(
        film.method, film.method
    )
    person = f"film-{film.target_id if film.label else film.source_id}"
    return np.stack(crops), pd.DataFrame(
        [(person, "film", kind)] * len(crops), columns=["person", "domain", "kind"]
    )


def keep(path, crops, table):
    """Write crops and their table, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, crops=crops, **{name: table[name].to_numpy(str) for name in table})


def make_stills(folder, chunks, seed):
    """The faces of all chunks of people, each in the wild and in one other domain; those that are there are kept."""
    for number in range(chunks):
        for domain in ("wild", DOMAINS[number % 2]):
            path = folder / f"{domain}-{number:03d}.npz"
            if not path.is_file():
                keep(path, *still_faces(number, domain, seed))
                print(path.name, flush=True)


def make_films(folder, built, split, seed):
    """The faces of all films of a split; those that are there are kept."""
    path = folder / f"film-{split}.npz"
    if not path.is_file():
        faces = FaceSet(built, split)
        parts = [film_faces(faces, row, seed) for row in range(len(faces))]
        keep(path, np.concatenate([crops for crops, _ in parts]), pd.concat([table for _, table in parts]))
        print(path.name, flush=True)


class Faces:
    """Stored faces with their labels, looked at anew in each epoch: moved, compressed, blurred, dimmed; also a hook.

    Faces to validate on are moved and changed too, but in each epoch in the same way.
    """

    def __init__(self, folder, names, seed, augment=True):
        parts = [np.load(folder / f"{name}.npz") for name in names]
        self.crops = np.concatenate([part["crops"] for part in parts])
        self.table = pd.concat(
            pd.DataFrame({c: part[c] for c in ("person", "domain", "kind")}) for part in parts
        )
        self.table = self.table.reset_index(drop=True)
        self.labels = (self.table.kind != "real").to_numpy(np.int64)
        self.media_ids = [f"{row.person}-{number}" for number, row in enumerate(self.table.itertuples())]
        self.seed, self.augment, self.epoch = seed, augment, 0

    def __len__(self):
        return len(self.labels)

    def repeated(self):
        """The same with the real ones as often as the fakes, about."""
        real, fake = (np.flatnonzero(self.labels == label) for label in (0, 1))
        keep = np.concatenate([*[real] * max(1, round(len(fake) / len(real))), fake])
        self.crops, self.labels, self.table = self.crops[keep], self.labels[keep], self.table.iloc[keep]
        self.media_ids = [f"{number}" for number in range(len(keep))]
        return self

    def on_epoch_start(self, trainer, epoch):
        """Note the epoch, of which the draws depend."""
        self.epoch = epoch

    def read(self, indices):
        """Faces, uint8 (B, SIZE, SIZE, 3)."""
        crops = (self.crops[index] for index in indices)
        if not self.augment:
            return torch.from_numpy(np.stack([crop[MARGIN:-MARGIN, MARGIN:-MARGIN] for crop in crops]))
        streams = (random_stream(self.seed, "look", self.epoch, int(index)) for index in indices)
        return torch.from_numpy(
            np.stack([worsen(move(c, rng), rng) for c, rng in zip(crops, streams, strict=True)])
        )


def move(crop, rng):
    """A stored face, perhaps mirrored, turned, enlarged and shifted a little: uint8 (SIZE, SIZE, 3)."""
    angle, scale = rng.uniform(-8, 8), rng.uniform(0.92, 1.1)
    matrix = cv2.getRotationMatrix2D(((STORED - 1) / 2,) * 2, angle, scale)
    matrix[:, 2] += rng.uniform(-4, 4, 2) - MARGIN
    crop = cv2.warpAffine(
        crop, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.ascontiguousarray(crop[:, ::-1]) if rng.random() < 0.5 else crop


def worsen(crop, rng):
    """A face after a few of the things that happen to images, each with a chance."""
    if rng.random() < 0.3:
        side = int(SIZE * rng.uniform(0.4, 0.9))
        crop = cv2.resize(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    if rng.random() < 0.2:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.6:
        gain, lift, bend = rng.uniform(0.7, 1.25), rng.uniform(-12, 12, 3), rng.uniform(0.75, 1.3)
        crop = np.clip(255 * (np.arange(256) / 255) ** bend * gain + lift[:, None], 0, 255).astype(np.uint8).T[crop, [0, 1, 2]]  # fmt: skip
    if rng.random() < 0.25:
        crop = np.clip(crop + rng.normal(0, rng.uniform(1, 10), crop.shape), 0, 255).astype(np.uint8)
    return jpeg(crop, int(rng.integers(30, 96))) if rng.random() < 0.5 else crop


class Tell:
    """Prints each epoch's record."""

    def on_epoch_end(self, trainer, epoch, record):
        numbers = {name: round(value, 4) for name, value in record.items() if isinstance(value, float)}
        print(f"epoch {epoch}: {numbers}", flush=True)


def train(folder, options):
    """A trainer with the weights of the best epoch on validation."""
    learn = Faces(folder, names_of("train", range(options.chunks)), options.seed).repeated()
    test = Faces(folder, names_of("val", validation_chunks(options)), options.seed + 1)
    assert set(learn.table.person).isdisjoint(test.table.person)
    with seeded(options.seed, "frame network"):
        network = FrameNetwork(**NETWORK).to(memory_format=torch.channels_last)
    settings = TrainingSettings(epochs=options.epochs, optimizer="adamw", learning_rate=1e-3, weight_decay=0.02, schedule="step",
                                step_epochs=STEP, factor=0.3, precision=options.precision, seed=options.seed)  # fmt: skip
    trainer = Trainer(network, settings, transform=UNIT_RANGE, loss=binary_cross_entropy, hooks=[Tell(), learn],
                      folder=options.work / "frame-training")  # fmt: skip
    trainer.fit(learn, test)
    trainer.load_best()
    return trainer


def names_of(split, chunks):
    """The stored files of a split."""
    return [f"film-{split}", *(f"{domain}-{n:03d}" for n in chunks for domain in ("wild", DOMAINS[n % 2]))]


def validation_chunks(options):
    return range(options.chunks, options.chunks + VALIDATION_CHUNKS)


def areas_of(trainer, faces):
    """The area under the ROC of each kind of fake against the real ones of the same domain, and of all."""
    scores = fake_scores(trainer.predict(faces))
    found = {"all": auc(faces.labels, scores)}
    for (domain, kind), rows in faces.table.groupby(["domain", "kind"]):
        if kind != "real":
            real = faces.table.index[(faces.table.domain == domain) & (faces.table.kind == "real")]
            chosen = [*real, *rows.index]
            found[f"{domain}: {kind}"] = auc(faces.labels[chosen], scores[chosen])
    return {name: round(float(value), 4) for name, value in found.items()}


def ship(trainer, folder, options):
    """Write the weights, with how they were made and how well they do on people who were not in training."""
    network = copy.deepcopy(trainer.network).half()
    trainer.network.load_state_dict(network.state_dict())  # what is measured below is what is shipped
    faces = [
        Faces(folder, names_of("val", validation_chunks(options)), options.seed + 1, how)
        for how in (False, True)
    ]
    people = Faces(folder, names_of("train", range(options.chunks)), 0).table.person.nunique()
    plain, worsened = (areas_of(trainer, some) for some in faces)
    made = {
        "command": f"python scripts/train_frames.py --chunks {options.chunks} --epochs {options.epochs} --seed {options.seed} "
        f"--precision {options.precision}",
        "training_seconds": round(sum(record["seconds"] for record in trainer.log.records)),
        "best_epoch": trainer.log.best_epoch, "torch": torch.__version__,
        "validation": {"faces": len(faces[0]), "people": faces[0].table.person.nunique(), "auc": plain, "auc after changes": worsened},
    }  # fmt: skip
    save_network(options.out, "frame-network", network, WORDS.format(people=people), NETWORK, size=SIZE, threshold=0.5, made=made)  # fmt: skip
    print(json.dumps(made["validation"], indent=1))
    print(f"{options.out}: {options.out.stat().st_size} bytes, SHA-256 {sha256_of(options.out)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for films, faces and checkpoints")
    parser.add_argument("--chunks", type=int, default=16, help=f"of {CHUNK} people each, for training")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument(
        "--out", type=Path, default=Path("deepfake_nb/weights_shipped/rendered-faces.safetensors")
    )
    options = parser.parse_args()
    folder = options.work / "faces"
    folder.mkdir(parents=True, exist_ok=True)
    built = make_base_set(150, 40, seed=options.seed, root=options.work)
    for split in ("train", "val"):
        make_films(folder, built.folder, split, options.seed)
    make_stills(folder, options.chunks + VALIDATION_CHUNKS, options.seed)
    ship(train(folder, options), folder, options)


if __name__ == "__main__":
    main()
