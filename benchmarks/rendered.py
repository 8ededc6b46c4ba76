"""Rendered people: a film against the same frames drawn one at a time, and many stills against one at a time.

Run it by ``deepfake-nb bench rendered``, or alone, in the folder of the repository: ``python -m benchmarks.rendered``.
"""

import json
import os
import time

import torch

from benchmarks.faces import row, seconds
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills, render_video
from deepfake_nb.people.scenes import DOMAINS

SIDE = 128
FRAMES, ALONE = 100, 10
PEOPLE, PEOPLE_ALONE = 32, 8
TURNS = 2
GOAL_RATE = 75.0  # frames a second of one core
GOAL_FILM, GOAL_STILLS = 2.0, 1.0


def film(domain, n_frames):
    """A film of one person."""
    return render_video(random_identity(9), domain, n_frames, size=SIDE, seed=0)


def frames_apart(domain, n_frames):
    """As many frames of that person, the scene set anew for each."""
    for number in range(n_frames):
        render_video(random_identity(9), domain, 1, size=SIDE, seed=number)


def stills(domain, people):
    """A picture of each person, all asked for at once."""
    return render_stills(people, domain, size=SIDE, seed=0)


def stills_apart(domain, people):
    """A picture of each person, one asked for after the other."""
    for person in people:
        render_stills([person], domain, size=SIDE, seed=0)


def both(ours, plain, ours_count, plain_count):
    """Seconds a picture of both ways, which take turns; the fastest turn of each counts."""
    turns = [(seconds(*ours), seconds(*plain)) for _ in range(TURNS)]
    ours_s, plain_s = (min(column) for column in zip(*turns, strict=True))
    return ours_s / ours_count, plain_s / plain_count


def rows_of(domain):
    """A film and stills in one domain."""
    people = [random_identity(1000 + number) for number in range(PEOPLE)]
    film(domain, 2)
    film_s, frame_s = both((film, domain, FRAMES), (frames_apart, domain, ALONE), FRAMES, ALONE)
    still_s, alone_s = both(
        (stills, domain, people), (stills_apart, domain, people[:PEOPLE_ALONE]), PEOPLE, PEOPLE_ALONE
    )
    where = f"{SIDE} pixels, {torch.get_num_threads()} threads, {os.cpu_count()} cores; seconds are those of one picture"
    return [
        row(f"rendered: a film, {domain}", film_s, frame_s, frame_s / film_s, f"ratio >= {GOAL_FILM:g}",
            frame_s >= GOAL_FILM * film_s, f"{1 / film_s:.0f} frames/s; plain: the scene set anew for each frame; {where}"),
        row(f"rendered: stills, {domain}", still_s, alone_s, alone_s / still_s, f"ratio >= {GOAL_STILLS:g}",
            alone_s >= GOAL_STILLS * still_s, f"{1 / still_s:.1f} people/s, {PEOPLE} at once; plain: one after the other; {where}"),
    ]  # fmt: skip


def rate_row(domain="studio"):
    """Frames a second of one core, by the processor's time: the clock on the wall counts what else the machine does."""
    spent = []
    for _ in range(TURNS):
        started = time.process_time()
        film(domain, FRAMES)
        spent.append(time.process_time() - started)
    rate = FRAMES / min(spent)
    note = f"{domain}, {SIDE} pixels; ratio is frames a second of one core; plain_s is the time allowed for {FRAMES} frames"
    return row("rendered: frames a second of one core", min(spent), FRAMES / GOAL_RATE, rate, f"ratio >= {GOAL_RATE:g}",
               rate >= GOAL_RATE, note)  # fmt: skip


def run(media=None) -> list[dict]:
    """Measure rendering.

    Parameters
    ----------
    media : path, optional
        Not used: the pictures are rendered people.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    return [rate_row(), *(row for domain in DOMAINS for row in rows_of(domain))]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
