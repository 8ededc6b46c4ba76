"""A video to a verdict by clips of one track, against sliding by one frame and doing all of it anew for each clip.

Run it by ``deepfake-nb bench altfreezing``, or alone: ``python benchmarks/altfreezing.py [VIDEO OR FOLDER]``. With two
cores it takes about four minutes, and as long again for every four videos of a folder.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from deepfake_nb.learning.clips import ClipSet, clip_starts, cut_clip, inference_precision, pool_clips
from deepfake_nb.learning.training import Trainer, TrainingSettings
from deepfake_nb.media.faces import CenterFace, align_clip, track_faces
from deepfake_nb.media.images import IMAGENET_NORMALISATION
from deepfake_nb.media.video import media_kind, read_frames, write_video
from deepfake_nb.networks.devices import has_bf16, seeded
from deepfake_nb.networks.video_resnet import VideoResNet, normalise_clips, save_video_resnet
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_video
from deepfake_nb.scoring.score import MediaScorer

N_FRAMES = 300
CLIP_LENGTH = 32
STEP = 16
SAMPLED_WINDOWS = 6
MEMORY_GOAL_MB = 3000
TRAINED_CLIPS = 24


def make_video(path, seed=3, n_frames=N_FRAMES, shape=(720, 1280)):
    """A clip of one rendered person who moves before a still background while the light changes."""
    side = shape[0] * 5 // 6
    face = render_video(random_identity(seed), "studio", 24, size=192, seed=seed).images
    there_and_back = np.concatenate([face, face[::-1]])
    background = cv2.GaussianBlur(cv2.resize(face[0], shape[::-1]), (0, 0), 9)
    grain = np.random.default_rng(seed).integers(0, 6, (*shape, 3), np.uint8)

    def frames():
        for at in range(n_frames):
            image = background + grain
            x = round(shape[1] / 2 - side / 2 + shape[1] / 20 * np.sin(at / 20))
            y = round(shape[0] / 15 + shape[0] / 40 * np.cos(at / 15))
            light = 0.85 + 0.15 * np.sin(at / 40 + seed)
            large = cv2.resize(there_and_back[at % len(there_and_back)], (side, side))
            image[y : y + side, x : x + side] = np.uint8(large * light)
            yield image

    return write_video(path, frames(), 25, crf=23)


def spread_network(width, clips):
    """A network with random weights in which every block takes part and whose scores of some clips differ widely."""
    with seeded(0, "weights"):
        network = VideoResNet(width=width).eval()
    for module in network.modules():
        if hasattr(module, "branch2"):
            torch.nn.init.constant_(module.branch2.c_bn.weight, 0.5)
    with torch.inference_mode():
        logits = torch.cat([network(normalise_clips(clip[None])) for clip in clips])
        scale = 2 / float(logits.std())
        network.head.projection.weight.mul_(scale)
        network.head.projection.bias.copy_((network.head.projection.bias - logits.mean()) * scale)
    return network


def a_few_clips(path, size=224):
    """Three clips of the largest face of a video, uint8 (length, size, size, 3)."""
    track = track_faces(read_frames(path, max_frames=N_FRAMES), CenterFace(), crop_size=size)[0]
    return [
        cut_clip(track, start, CLIP_LENGTH)
        for start in np.linspace(0, len(track) - CLIP_LENGTH, 3, dtype=int)
    ]


def peak_mb():
    """Largest resident memory of this process so far; Linux would report the parent's by getrusage after a fork."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def score_a_video(path, weights, options):
    """Seconds to a verdict, its score, and peak memory in MB."""
    scorer = MediaScorer("altfreezing", weights, **options)
    started = time.perf_counter()
    verdict = scorer.score(path)
    if verdict.score is None:
        raise RuntimeError(verdict.reason)
    return time.perf_counter() - started, verdict.score, peak_mb()


def in_a_new_process(work, *arguments):
    """Run `work` where nothing else has used memory before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def plain_seconds(path, network):
    """The plain way: every face looked for in every frame, and for each window its alignment and its pass anew.

    Returns
    -------
    seconds for all windows, of which `SAMPLED_WINDOWS` were done; seconds of one; how many there are; their scores in
    float32, and in our number format
    """
    started = time.perf_counter()
    frames = list(read_frames(path, max_frames=N_FRAMES))
    track = track_faces(frames, CenterFace(), every=1, close_look=None, rescan_s=0)[0]
    found_s, images = time.perf_counter() - started, [frame.image for frame in frames]
    starts = clip_starts(len(track), CLIP_LENGTH, step=1)
    sample, logits, as_ours = starts[:: len(starts) // SAMPLED_WINDOWS][:SAMPLED_WINDOWS], [], []
    window_s = []
    for start in sample:
        rows = slice(start, start + CLIP_LENGTH)
        started = time.perf_counter()
        shown = [images[at] for at in track.frame_indices[rows]]
        clip = align_clip(shown, track.boxes[rows], track.landmarks[rows])[0]
        with torch.inference_mode():
            logits.append(network(normalise_clips(clip[None])))
        window_s.append(time.perf_counter() - started)
        with torch.inference_mode(), inference_precision("auto", torch.device("cpu")):
            as_ours.append(network(normalise_clips(clip[None])).float())
    each_s = float(np.median(window_s))
    scores = [torch.sigmoid(torch.cat(values)).numpy() for values in (logits, as_ours)]
    return found_s + each_s * len(starts), each_s, len(starts), *scores


def row(name, ours_s, plain_s, ratio, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(ratio, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def verdict_rows(path, folder):
    """One video at full width: time to a verdict, and memory."""
    network = spread_network(64, a_few_clips(path))
    weights = Path(folder) / "full.safetensors"
    save_video_resnet(weights, network, "nothing: random weights")
    ours_s, _, peak = in_a_new_process(score_a_video, path, weights, {"clip_step": STEP})
    plain_s, each_s, n_windows, exact, as_ours = plain_seconds(path, network)
    started = time.perf_counter()
    track_faces(read_frames(path), CenterFace(), crop_size=224)
    tracked_s = time.perf_counter() - started
    n_clips, cores = len(clip_starts(n_windows + CLIP_LENGTH - 1, CLIP_LENGTH, STEP)), os.cpu_count()
    note = (
        f"{n_windows + CLIP_LENGTH - 1} frames of {Path(path).name}, width 64, 32 x 224 x 224: {n_clips} clips against "
        f"{n_windows} windows, of which {len(exact)} were timed ({each_s:.2f} s each in float32) and multiplied; "
        f"ours in {number_format()}, which moves their scores by {np.abs(exact - as_ours).max():.4f} at most; in float32 "
        f"the ratio would be about {plain_s / (tracked_s + n_clips * each_s):.1f}; {cores} cores"
    )
    memory = "the same video in a process of its own; ratio is the peak in MB"
    return [
        row("altfreezing: a video to a verdict", ours_s, plain_s, plain_s / ours_s, "ratio >= 15",
            plain_s >= 15 * ours_s, note),
        row("altfreezing: memory of a verdict", ours_s, plain_s, peak, f"peak < {MEMORY_GOAL_MB} MB",
            peak < MEMORY_GOAL_MB, memory),
    ]  # fmt: skip


def number_format():
    """What our network computes in on this machine."""
    return "bfloat16" if has_bf16(torch.device("cpu")) else "float32"


def media_score(track, network, step, precision):
    """Seconds, and the score of a track by clips so far apart, as `MediaScorer` comes to it."""
    started, starts = time.perf_counter(), clip_starts(len(track), CLIP_LENGTH, step)
    logits = []
    with torch.inference_mode(), inference_precision(precision, torch.device("cpu")):
        for start in starts:
            logits.append(network(normalise_clips(cut_clip(track, start, CLIP_LENGTH)[None])).float())
    return time.perf_counter() - started, pool_clips(starts, torch.sigmoid(torch.cat(logits)).numpy())


def agreement_row(videos):
    """Media scores at our stride and format against every window in float32, by a narrow network with wide scores."""
    size, width = 64, 8
    tracks = [
        track_faces(read_frames(path, max_frames=N_FRAMES), CenterFace(), crop_size=size) for path in videos
    ]
    tracks = [found[0] for found in tracks if found and len(found[0]) >= CLIP_LENGTH]
    starts = [(track, start) for track in tracks for start in clip_starts(len(track), CLIP_LENGTH, 60)]
    network = spread_network(width, [cut_clip(track, start, CLIP_LENGTH) for track, start in starts])
    pairs = [
        (media_score(track, network, STEP, "auto"), media_score(track, network, 1, "float32"))
        for track in tracks
    ]
    (ours_s, ours), (plain_s, every) = (zip(*column, strict=True) for column in zip(*pairs, strict=True))
    apart = np.abs(np.subtract(ours, every))
    note = (
        f"{len(tracks)} videos of up to {N_FRAMES} frames, width {width}, 32 x {size} x {size}; ratio is the mean "
        f"|difference of media score|, {apart.max():.4f} at most; random weights, the head scaled so that the videos' "
        f"scores lie between {min(every):.2f} and {max(every):.2f}; ours in {number_format()}, the plain way in float32, "
        f"on the same tracks"
    )
    name, mean = "altfreezing: score at stride 16 against stride 1", float(apart.mean())
    return row(name, sum(ours_s), sum(plain_s), mean, "ratio <= 0.02", mean <= 0.02, note)


def build_of(videos, folder):
    """A build of some videos, half of them called fake."""
    from deepfake_nb.data.builds import build

    for number, path in enumerate(videos):
        place = Path(folder) / "media" / ("real", "fake")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}{Path(path).suffix}").symlink_to(Path(path).absolute())
    settings = {"max_frames": N_FRAMES}
    return build("folder", Path(folder) / "media", Path(folder) / "built", settings=settings).folder


class PlainClips:
    """A set whose clips are decoded from the video and aligned each time they are asked for."""

    def __init__(self, clips, media):
        self.clips, self.media = clips, Path(media)
        self.labels, self.media_ids = clips.labels, clips.media_ids

    def __len__(self):
        return len(self.clips)

    def read(self, indices):
        """Clips as a uint8 tensor (B, T, S, S, 3)."""
        return torch.from_numpy(np.stack([self.clip(index) for index in indices]))

    def clip(self, index):
        """One clip, decoded and aligned."""
        track = self.clips.first_track(self.clips.rows[index])
        rows = slice(self.clips.starts[index], self.clips.starts[index] + CLIP_LENGTH)
        path = self.media / self.clips.table.path[index]
        images = [frame.image for frame in read_frames(path, indices=track.frame_indices[rows].tolist())]
        return align_clip(images, track.boxes[rows], track.landmarks[rows], self.clips.size)[0]


def waiting_row(videos, folder):
    """An epoch that cuts clips from face tracks while the network learns, one from cut clips, and a plain one."""
    built = build_of(videos, folder)
    options = {"length": CLIP_LENGTH, "step": STEP, "most": -(-TRAINED_CLIPS // len(videos))}
    tracked = ClipSet(built, **options)
    cut = ClipSet(built, **options, cache=Path(folder) / "cut")
    with seeded(0, "weights"):
        network = VideoResNet(width=8)
    trainer = Trainer(network, TrainingSettings(batch_size=4), transform=IMAGENET_NORMALISATION)
    sets = {"tracks": tracked, "cut": cut, "plain": PlainClips(tracked, Path(folder) / "media")}
    results = {name: trainer.train_one_epoch(clips, 1) for name, clips in sets.items()}
    shares = {name: result.wait_s / result.seconds for name, result in results.items()}
    note = (
        f"one epoch of {len(tracked)} clips of 32 x 224 x 224, width 8, batches of 4; ratio is seconds waited / seconds, "
        f"clips cut and aligned from face tracks meanwhile; {shares['cut']:.3f} from clips cut once; "
        f"{shares['plain']:.3f} decoding the videos anew; {torch.get_num_threads()} threads on {trainer.device}"
    )
    name, share = "altfreezing: share of training that waits for data", shares["tracks"]
    seconds = results["tracks"].seconds, results["plain"].seconds
    return row(name, *seconds, share, "ratio <= 0.10", share <= 0.10, note)


def run(media=None) -> list[dict]:
    """Measure scoring by clips, and reading clips while training.

    Parameters
    ----------
    media : path, optional
        A video, or a folder with videos in it, whose scores are compared besides those of rendered ones.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    given = sorted(Path(media).rglob("*")) if media and Path(media).is_dir() else [media] if media else []
    given = [Path(path) for path in given if media_kind(path) == "video"]
    with tempfile.TemporaryDirectory() as folder:
        held_out = [make_video(Path(folder) / f"{seed}.mp4", seed, 120, (360, 640)) for seed in (5, 6, 7)]
        first = make_video(Path(folder) / "rendered 720p.mp4")
        return [
            *verdict_rows(first, folder),
            agreement_row([*held_out, first, *given]),
            waiting_row(held_out, folder),
        ]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
