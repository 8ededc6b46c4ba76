"""Reading and augmenting stills against one Pillow call a picture, and how long training waits for its pictures.

Run it by ``deepfake-nb bench training``, or alone: ``python benchmarks/training.py [FOLDER OF PICTURES]``.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from deepfake_nb.learning.training import Trainer, TrainingSettings, read_ahead, training_portions
from deepfake_nb.media.images import CIFAR_NORMALISATION, Augmentation, ImageSet
from deepfake_nb.networks.devices import seeded
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills
from deepfake_nb.sections.frame_detectors import SimpleNet
from deepfake_nb.study.files import random_stream

N_PICTURES = 512
N_LEARNT = 128
SIZE = 256
BATCH_SIZE = 32
TURNS = 6


def make_stills(folder):
    """JPEG files of rendered people, 256 x 256 pixels, each person in several qualities."""
    people = render_stills([random_identity(seed) for seed in range(16)], "studio", size=SIZE).images
    paths = []
    for at in range(N_PICTURES):
        paths.append(Path(folder) / f"{at:04}.jpg")
        quality = [cv2.IMWRITE_JPEG_QUALITY, 60 + at // len(people)]
        cv2.imwrite(str(paths[-1]), people[at % len(people)][..., ::-1], quality)
    return paths


class PlainPictures(Dataset):
    """One picture after the other through Pillow and torchvision, as in the faces paper's code."""

    def __init__(self, paths, labels):
        from torchvision import transforms

        self.paths, self.labels = paths, labels
        normalise = transforms.Normalize(CIFAR_NORMALISATION.mean, CIFAR_NORMALISATION.std)
        crop, flip = transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalise])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index])), self.labels[index]


def plain_pass(paths, labels):
    """Seconds in which a plain loader gives every picture once."""
    start = time.perf_counter()
    for inputs, _ in DataLoader(PlainPictures(paths, labels), BATCH_SIZE, shuffle=True):
        inputs.sum()
    return time.perf_counter() - start


def our_pass(pictures, epoch):
    """Seconds in which our set and transform give every picture once, the next batch being read meanwhile."""
    augmentation = Augmentation(CIFAR_NORMALISATION, padding=4, flip=True)
    order = random_stream(0, "order", epoch).permutation(len(pictures))
    start = time.perf_counter()
    draws = random_stream(0, "augmentation", epoch).random((len(pictures), augmentation.n_draws), "float32")
    portions = training_portions(order, TrainingSettings(batch_size=BATCH_SIZE))
    for portion, batch in read_ahead(pictures, portions):
        augmentation(batch, torch.from_numpy(draws[portion.indices])).sum()
    return time.perf_counter() - start


def row(name, ours_s, plain_s, ratio, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(ratio, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def reading_rows(paths, labels):
    """Both ways take turns, and the fastest turn of each counts: other work on the machine only slows."""
    turns = []
    for turn in range(TURNS):
        pictures = ImageSet(paths, labels, SIZE)
        turns.append((plain_pass(paths, labels), our_pass(pictures, turn), our_pass(pictures, turn + TURNS)))
    plain_s, first_s, later_s = (min(column) for column in zip(*turns, strict=True))
    what = f"{len(paths)} JPEG stills of {SIZE} pixels, best of {TURNS} turns, {os.cpu_count()} cores"

    def reading(name, passes, ours_s):
        each = f"{1000 * ours_s / passes / len(paths):.2f} ms a picture, plain {1000 * plain_s / len(paths):.2f} ms"
        ratio = passes * plain_s / ours_s
        title = f"training: read and augment stills, {name}"
        return row(title, ours_s, passes * plain_s, ratio, "ratio >= 3", ratio >= 3, f"{what}; {each}")

    return [
        reading("first pass", 1, first_s),
        reading("later passes, from memory", 1, later_s),
        reading("the paper's five epochs", 5, first_s + 4 * later_s),
    ]


def plain_epoch(paths, labels):
    """Seconds, and seconds of them waiting, of an epoch in which every step first reads its pictures."""
    with seeded(0, "weights"):
        network = SimpleNet()
    optimizer, waited, start = torch.optim.Adam(network.parameters()), 0.0, time.perf_counter()
    batches = iter(DataLoader(PlainPictures(paths, labels), BATCH_SIZE, shuffle=True))
    for _ in range(len(paths) // BATCH_SIZE):
        asked = time.perf_counter()
        inputs, targets = next(batches)
        waited += time.perf_counter() - asked
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    return time.perf_counter() - start, waited


def waiting_row(paths, labels):
    """An epoch that decodes every picture while the network learns, one from memory, and a plain one."""
    with seeded(0, "weights"):
        network = SimpleNet()
    augmentation = Augmentation(CIFAR_NORMALISATION, padding=4, flip=True)
    trainer = Trainer(network, TrainingSettings(batch_size=BATCH_SIZE), transform=augmentation)
    trainer.train_one_epoch(ImageSet(paths[:BATCH_SIZE], labels[:BATCH_SIZE], SIZE), 1)
    turns = []
    for turn in range(TURNS // 2):
        pictures = ImageSet(paths, labels, SIZE)
        ours = (
            trainer.train_one_epoch(pictures, 2 * turn + 2),
            trainer.train_one_epoch(pictures, 2 * turn + 3),
        )
        turns.append([*((result.seconds, result.wait_s) for result in ours), plain_epoch(paths, labels)])
    (decoding_s, wait_s), (kept_s, kept_wait_s), (plain_s, plain_wait_s) = map(min, zip(*turns, strict=True))
    share = wait_s / decoding_s
    note = (
        f"one epoch of {len(paths)} pictures, decoded meanwhile; ratio is seconds waited / seconds; from memory "
        f"{kept_s:.1f} s, of which {kept_wait_s / kept_s:.3f} waited; plain loop {plain_wait_s / plain_s:.3f}; "
        f"{torch.get_num_threads()} threads on {trainer.device}, best of {len(turns)} turns"
    )
    name = "training: share of time that SimpleNet waits for data"
    return row(name, decoding_s, plain_s, share, "ratio <= 0.10", share <= 0.10, note)


def run(media=None) -> list[dict]:
    """Measure reading, augmenting and waiting.

    Parameters
    ----------
    media : path, optional
        A folder with JPEG pictures of at least 256 x 256 pixels; by default they are made of rendered people.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = sorted(Path(media).rglob("*.jpg"))[:N_PICTURES] if media and Path(media).is_dir() else []
        paths = given or make_stills(folder)
        labels = [at % 2 for at in range(len(paths))]
        return [*reading_rows(paths, labels), waiting_row(paths[:N_LEARNT], labels[:N_LEARNT])]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
