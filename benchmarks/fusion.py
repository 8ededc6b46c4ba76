"""Fifteen frozen configurations from one pass through four backbones, against one configuration after another.

Run it by ``deepfake-nb bench fusion``, or alone: ``python benchmarks/fusion.py [FOLDER OF PICTURES]``.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import torch
from torch.nn import functional

from deepfake_nb.learning.features import (
    compute_features,
    make_head,
    measure_norms,
    predict_heads,
    train_heads,
)
from deepfake_nb.learning.training import cut_batches, fake_scores
from deepfake_nb.media.images import ImageSet
from deepfake_nb.networks.backbones import FOUR, list_combinations, make_backbone
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills
from deepfake_nb.sections.fusion import AUGMENTATION, UNIT, head_settings
from deepfake_nb.study.files import random_stream

SIZE = 128
N_TRAIN, N_VALIDATION = 128, 32
BATCH_SIZE = 32
EPOCHS = 20
GOAL_RATIO, GOAL_PLAIN = 1.6, 5.0
TURNS = 2


def make_stills(folder, n):
    """JPEG files of rendered people."""
    people = render_stills([random_identity(seed) for seed in range(32)], "wild", size=SIZE).images
    paths = [Path(folder) / f"{at:03}.jpg" for at in range(n)]
    for at, path in enumerate(paths):
        cv2.imwrite(str(path), people[at % 32][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80 + at // 32])
    return paths


def picture_sets(paths):
    """Training and validation pictures, every second one called fake."""
    parts = paths[:N_TRAIN], paths[N_TRAIN : N_TRAIN + N_VALIDATION]
    return [ImageSet(part, [at % 2 for at in range(len(part))], SIZE) for part in parts]


def wait(device):
    """Until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def pass_all(network, pictures, device, precision="float32"):
    """Features of every picture, passed once: (N, F)."""
    found = []
    for part in cut_batches(np.arange(len(pictures)), BATCH_SIZE, 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found.append(network(UNIT(pictures.read(part).to(device))).float())
    return torch.cat(found)


def forward_seconds(backbones, sets, device):
    """Seconds of the four backbones' passes alone, pictures decoded beforehand."""
    started = time.perf_counter()
    for backbone in backbones:
        for pictures in sets:
            pass_all(backbone.network, pictures, device)
    wait(device)
    return time.perf_counter() - started


def ours(backbones, sets, folder, device):
    """Seconds of passing, keeping and all fifteen heads, pictures decoded beforehand; and these heads."""
    started = time.perf_counter()
    train, validation = (
        compute_features(p, backbones, folder, f"set-{at}", AUGMENTATION) for at, p in enumerate(sets)
    )
    passed = time.perf_counter() - started
    settings = head_settings(EPOCHS, BATCH_SIZE)
    heads, _ = train_heads(
        train, sets[0].labels, validation, sets[1].labels, list_combinations(), settings, device=device
    )
    wait(device)
    return time.perf_counter() - started, passed, heads


def plain_configuration(networks, sets, device):
    """One configuration the plain way: pass the pictures through its backbones, train its head by itself."""
    train, validation = (torch.cat([pass_all(network, p, device) for network in networks], 1) for p in sets)
    labels, val_labels = (p.labels.float().to(device) for p in sets)
    head, settings = make_head(train.shape[1]).to(device), head_settings(EPOCHS, BATCH_SIZE)
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True), []
    for epoch in range(1, EPOCHS + 1):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.1 ** ((epoch - 1) // settings.step_epochs)
        head.train()
        for rows in cut_batches(random_stream(0, "order", epoch).permutation(len(train)), BATCH_SIZE, 2):
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(head(train[rows])[:, 0], labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            logits = head.eval()(validation)[:, 0]
            losses.append(float(functional.binary_cross_entropy_with_logits(logits, val_labels)))
        if epoch - 1 - int(np.argmin(losses)) >= settings.early_stopping:
            break


def plain_seconds(backbones, sets, device):
    """Seconds of all fifteen configurations, one after another."""
    networks, started = {b.name: b.network for b in backbones}, time.perf_counter()
    for parts in list_combinations():
        plain_configuration([networks[name] for name in parts], sets, device)
    wait(device)
    return time.perf_counter() - started


def row(name, ours_s, plain_s, ratio, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(ratio, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def cost_rows(backbones, sets, device):
    """What fifteen configurations cost: in passes of the backbones, and against the plain way.

    Passes and ours take turns, and the fastest turn of each counts: other work on the machine only slows. The plain way has
    one long turn, so it is set against the mean of ours.
    """
    forward_s, turns = [], []
    for _ in range(TURNS):
        forward_s.append(forward_seconds(backbones, sets, device))
        with tempfile.TemporaryDirectory() as folder:
            ours_s, passed_s, heads = ours(backbones, sets, Path(folder), device)
        turns.append((ours_s, passed_s))
    (best_s, passed_s), mean_s, forward_s = min(turns), fmean(ours_s for ours_s, _ in turns), min(forward_s)
    plain_s = plain_seconds(backbones, sets, device)
    about = f"{N_TRAIN} + {N_VALIDATION} pictures of {SIZE} pixels, {EPOCHS} epochs of heads, {torch.get_num_threads()} threads on {device}"
    share, gain = best_s / forward_s, plain_s / mean_s
    return [
        row("fusion: 15 configurations in units of the backbones' passes", best_s, forward_s, share,
            f"ratio <= {GOAL_RATIO}", share <= GOAL_RATIO,
            f"{about}, best of {TURNS} turns; ratio is all seconds / seconds of four forward passes; passing and keeping "
            f"took {passed_s:.1f} s, heads {best_s - passed_s:.1f} s"),
        row("fusion: 15 configurations against one after another", mean_s, plain_s, gain, f"ratio >= {GOAL_PLAIN}",
            gain >= GOAL_PLAIN, f"{about}, mean of {TURNS} turns of ours; the plain way passes each configuration's pictures once; "
            f"in every epoch, as the listing does, its passes would cost up to {EPOCHS} times as much"),
    ], heads  # fmt: skip


def precision_row(backbones, sets, heads, device):
    """Passes in bf16 against float32, and how far the scores move."""
    seconds, moved = {}, {}
    for precision in ("float32", "bf16"):
        turns = []
        for _ in range(2):
            started = time.perf_counter()
            found = {b.name: pass_all(b.network, sets[1], device, precision) for b in backbones}
            wait(device)
            turns.append(time.perf_counter() - started)
        seconds[precision], moved[precision] = (
            min(turns),
            fake_scores(predict_heads(heads, found).cpu()[:, -1]),
        )
    gap = np.abs(moved["bf16"] - moved["float32"]).max()
    gain = seconds["float32"] / seconds["bf16"]
    return row(
        "fusion: passes in bf16 against float32", seconds["bf16"], seconds["float32"], gain, "none", True,
        f"{N_VALIDATION} pictures, four backbones, {device}; P(fake) of all four fused moves by {gap:.4f} at most; not the default",
    )  # fmt: skip


def layout_row(backbones, sets, device):
    """Passes with channels last, as features are made, against channels first."""

    def seconds():
        return min(forward_seconds(backbones, sets[1:], device) for _ in range(2))

    last_s = seconds()
    for backbone in backbones:
        backbone.network.to(memory_format=torch.contiguous_format)
    first_s = seconds()
    return row("fusion: weights with channels last against first", last_s, first_s, first_s / last_s, "none", True,
               f"{N_VALIDATION} pictures, four backbones, {device}, {os.cpu_count()} cores; the same numbers within rounding")  # fmt: skip


def run(media=None) -> list[dict]:
    """Measure what fifteen frozen configurations cost.

    Parameters
    ----------
    media : path, optional
        A folder with pictures; by default they are made of rendered people.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    needed = N_TRAIN + N_VALIDATION
    with tempfile.TemporaryDirectory() as folder:
        given = sorted(Path(media).rglob("*.jpg"))[:needed] if media and Path(media).is_dir() else []
        sets = picture_sets(given if len(given) == needed else make_stills(folder, needed))
        for pictures in sets:
            pictures.read(np.arange(len(pictures)))
        backbones = [measure_norms(make_backbone(name, "none", SIZE), sets[0], UNIT) for name in FOUR]
        for backbone in backbones:
            backbone.network.to(device, memory_format=torch.channels_last)
            pass_all(backbone.network, sets[1], device)
        rows, heads = cost_rows(backbones, sets, device)
        return [
            *rows,
            precision_row(backbones, sets, heads, device),
            layout_row(backbones, sets, device),
        ]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
