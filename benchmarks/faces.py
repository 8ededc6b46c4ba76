"""Face tracks against decoding alone, and against a loader that keeps every clip in memory as float32.

Run it by ``deepfake-nb bench faces``, or alone: ``python benchmarks/faces.py [VIDEO]``.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np

from deepfake_nb.media.faces import CenterFace, face_tracks, read_face_tracks, write_face_tracks
from deepfake_nb.media.video import write_video

REPEATS = 4
N_VIDEOS = 12
CLIP_LENGTH = 32
CROP_SIZE = 224
MEMORY_GOAL_MB = 1500


def make_clip(path, n_frames=240):
    """A 720p clip of one rendered person who moves before a still background."""
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import (
        render_video,  # brings torch: not for the processes that are measured
    )

    face = render_video(random_identity(3), "studio", 24, size=192, seed=0).images
    there_and_back = np.concatenate([face, face[::-1]])
    background = cv2.GaussianBlur(cv2.resize(face[0], (1280, 720)), (0, 0), 9)
    grain = np.random.default_rng(0).integers(0, 6, (720, 1280, 3), np.uint8)

    def frames():
        for at in range(n_frames):
            image = background + grain
            x, y = round(340 + 60 * np.sin(at / 20)), round(40 + 20 * np.cos(at / 15))
            image[y : y + 600, x : x + 600] = cv2.resize(there_and_back[at % len(there_and_back)], (600, 600))
            yield image

    return write_video(path, frames(), 25, crf=23)


def decode_alone(path):
    """Every frame to an RGB array, as one would with PyAV; returns the number of frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return sum(frame.to_ndarray(format="rgb24").shape[0] > 0 for frame in container.decode(stream))


def seconds(work, *arguments):
    """Wall time of one call."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def peak_mb():
    """Largest resident memory of this process so far; Linux would report the parent's by getrusage after a fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            / 1024
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def build_stores(path, folder):
    """Our way: the tracks of many videos, each written to its store; returns (seconds, peak, growth in MB)."""
    detector = CenterFace()
    face_tracks(path, detector, max_frames=2)
    before, start = peak_mb(), time.perf_counter()
    for at in range(N_VIDEOS):
        target = Path(folder) / f"{at}.safetensors"
        write_face_tracks(target, face_tracks(path, detector, crop_size=CROP_SIZE), str(at))
        read_face_tracks(target)
        target.unlink()
    return time.perf_counter() - start, peak_mb(), peak_mb() - before


def keep_floats(path, folder):
    """The plain way: every clip of every video as a float32 array in memory; crops at a fixed place."""
    before, start, clips = peak_mb(), time.perf_counter(), []
    for _ in range(N_VIDEOS):
        with av.open(str(path)) as container:
            frames = []
            for frame in container.decode(container.streams.video[0]):
                image = frame.to_ndarray(format="rgb24")
                side = min(image.shape[:2])
                left = (image.shape[1] - side) // 2
                frames.append(cv2.resize(image[:side, left : left + side], (CROP_SIZE, CROP_SIZE)))
                if len(frames) == CLIP_LENGTH:
                    clips.append(np.stack(frames).astype(np.float32) / 255)
                    frames = []
    return time.perf_counter() - start, peak_mb(), peak_mb() - before


def in_a_new_process(work, *arguments):
    """Run `work` where nothing else has used memory before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def row(name, ours_s, plain_s, ratio, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(ratio, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def speed_rows(path):
    """Tracks and decoding take turns, and the fastest turn of each counts: other work on the machine only slows."""
    detector = CenterFace()
    n_frames = decode_alone(path)
    face_tracks(path, detector, max_frames=10)
    turns = [(seconds(decode_alone, path), seconds(face_tracks, path, detector)) for _ in range(REPEATS)]
    plain_s, ours_s = (min(column) for column in zip(*turns, strict=True))
    rate = n_frames / ours_s
    what = f"{n_frames} frames of {Path(path).name}; best of {REPEATS} turns; {os.cpu_count()} cores"
    return [
        row(
            "faces: dense tracks against decoding alone",
            ours_s,
            plain_s,
            plain_s / ours_s,
            "ratio >= 0.5",
            ours_s <= 2 * plain_s,
            f"{what}; tracks take {ours_s / plain_s:.2f} times as long as decoding each frame to RGB",
        ),
        row(
            "faces: frames a second",
            ours_s,
            n_frames / 60,
            rate,
            "ratio >= 60",
            rate >= 60,
            f"{what}; ratio is frames a second, plain_s is the time allowed at 60 frames a second",
        ),
    ]


def memory_row(path, folder):
    """Memory of building many stores against keeping many clips."""
    ours_s, ours_peak, ours_growth = in_a_new_process(build_stores, path, folder)
    plain_s, _, plain_growth = in_a_new_process(keep_floats, path, folder)
    return row(
        "faces: memory of building many videos",
        ours_s,
        plain_s,
        plain_growth / max(ours_growth, 1.0),
        f"peak < {MEMORY_GOAL_MB} MB",
        ours_peak < MEMORY_GOAL_MB,
        f"{N_VIDEOS} videos; ratio is plain memory growth / ours; ours grows by {ours_growth:.0f} MB to "
        f"{ours_peak:.0f} MB, float32 clips in memory grow by {plain_growth:.0f} MB and go on growing",
    )


def run(media=None) -> list[dict]:
    """Measure face tracks.

    Parameters
    ----------
    media : path, optional
        A video of 720p; by default one is made of a rendered person.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(media) if media else make_clip(Path(folder) / "rendered 720p.mp4")
        return [*speed_rows(path), memory_row(path, folder)]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
