"""A verdict from a cold start against each detector on its own; what importing the package and asking for help take.

Run it by ``deepfake-nb bench score``, or alone, in the folder of the repository: ``python -m benchmarks.score [VIDEO]``.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.faces import in_a_new_process, make_clip, peak_mb, row

N_FRAMES = 250  # ten seconds
TURNS = 2
GOAL_S, GOAL_MB, GOAL_IMPORT_S, GOAL_HELP_S = 12.0, 1500, 0.3, 1.0
ROOT = Path(__file__).resolve().parents[1]

COMMAND = """
import sys
from deepfake_nb.cli import main
main(sys.argv[1:])
"""
MEASURED_COMMAND = """
import sys
from deepfake_nb.cli import main
try:
    main(sys.argv[1:])
finally:
    from benchmarks.faces import peak_mb
    print(peak_mb(), file=sys.stderr)
"""
IMPORT = """
import sys, time
started = time.perf_counter()
import {}
print(time.perf_counter() - started)
"""
EVERYTHING = ", ".join(
    f"deepfake_nb.{name}" for name in ("score", "report", "camera", "leaderboard", "generator")
)


def python(code, *arguments):
    """Run code in a new process; seconds, and the last line of what it wrote to each of its two streams."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    taken = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return taken, *(text.strip().rpartition("\n")[2] for text in (done.stdout, done.stderr))


def our_verdict(path, folder):
    """Seconds and peak memory in MB of the command, and the verdict."""
    out = Path(folder) / "verdict.json"
    taken, _, peak = python(MEASURED_COMMAND, "score", path, "--json", out)
    (verdict,) = json.loads(out.read_text())
    return taken, float(peak), verdict


def plain_score(path, name):
    """The plain way of one detector: all frames kept, the face looked for in each, and one look at a time; with peak memory."""
    from deepfake_nb.media.faces import CenterFace, track_faces
    from deepfake_nb.media.video import probe, read_frames
    from deepfake_nb.scoring.score import MediaScorer, logits_to_scores
    from deepfake_nb.scoring.views import ClipDetector, choose_frames, clip_views, frame_views

    scorer = MediaScorer(name, device="cpu", calibration=False, precision="float32")
    (loaded,) = scorer.detectors
    detector, frames = loaded.detector, list(read_frames(path))
    how = {"every": 1, "close_look": None, "rescan_s": 0}
    if isinstance(detector, ClipDetector):
        tracks = track_faces(frames, CenterFace(), crop_size=detector.input_size, **how)
        views = clip_views(tracks, 0, detector)
    else:
        tracks = track_faces(frames, CenterFace(), **how)
        wanted = choose_frames(
            tracks, [detector], scorer.sampling.stride(probe(path).frame_rate, len(frames)), None
        )
        views = frame_views([frames[at] for at in sorted(wanted)], wanted, tracks, [detector], None)
    views = (view for view in views if view.track == 0)
    scored = [(view.row, *logits_to_scores(loaded.predict(view.pixels[None]))) for view in views]
    return float(detector.pool(scored, detector.minimum_frames)), peak_mb()


def plain_verdict(path, names):
    """Seconds of all detectors, each in a new process and from the file on, their scores, and the highest peak in MB."""
    started, found = time.perf_counter(), {}
    for name in names:
        found[name] = in_a_new_process(plain_score, path, name)
    taken = time.perf_counter() - started
    return taken, {name: score for name, (score, _) in found.items()}, max(peak for _, peak in found.values())


def verdict_rows(path, folder):
    """Time to a verdict and memory, the command against the plain way."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    turns = [our_verdict(path, folder) for _ in range(TURNS)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy_s = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / TURNS
    ours_s, ours_mb = min(turn[0] for turn in turns), max(turn[1] for turn in turns)
    verdict = turns[0][2]
    scores = {one["name"]: one["score"] for one in verdict["detectors"]}
    plain_s, plain_scores, plain_mb = plain_verdict(path, list(scores))
    gap = max(abs(scores[name] - plain_scores[name]) for name in scores)
    note = (
        f"{Path(path).name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, best of {TURNS} new processes, {busy_s:.1f} processor seconds each; "
        f"{' and '.join(scores)}; verdict: {verdict['verdict']}; plain: a process for each, that looks for the face in every frame "
        f"and asks for one look at a time; scores differ by {gap:.3f} at most"
    )
    return [
        row("score: a verdict on ten seconds of 720p, from a cold start", ours_s, plain_s, plain_s / ours_s,
            f"ours_s <= {GOAL_S:g}", ours_s <= GOAL_S, note),
        row("score: memory of that verdict", ours_s, plain_s, plain_mb / ours_mb, f"peak < {GOAL_MB} MB", ours_mb < GOAL_MB,
            f"ratio is that of the peaks: ours {ours_mb:.0f} MB, the plain way {plain_mb:.0f} MB, which keeps all frames"),
    ]  # fmt: skip


def start_rows():
    """Importing the package against importing what it is made of, and the help against that with everything imported first."""
    ours_s = min(float(python(IMPORT.format("deepfake_nb"))[1]) for _ in range(3))
    plain_s = float(python(IMPORT.format(EVERYTHING))[1])
    help_s = min(python(COMMAND, "--help")[0] for _ in range(3))
    eager_s = python(f"import {EVERYTHING}\n{COMMAND}", "--help")[0]
    note = (
        "best of three new processes; plain: every module of the package that the commands may come to need"
    )
    return [
        row("score: importing the package", ours_s, plain_s, plain_s / ours_s, f"ours_s < {GOAL_IMPORT_S:g}",
            ours_s < GOAL_IMPORT_S, note),
        row("score: deepfake-nb --help", help_s, eager_s, eager_s / help_s, f"ours_s < {GOAL_HELP_S:g}", help_s < GOAL_HELP_S,
            "from a cold start, Python's own among it; " + note),
    ]  # fmt: skip


def run(media=None) -> list[dict]:
    """Measure the command line from a cold start.

    Parameters
    ----------
    media : path, optional
        A video; by default one of 720p and ten seconds is made of a rendered person.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(media) if media else make_clip(Path(folder) / "rendered 720p.mp4", N_FRAMES)
        return [*verdict_rows(path, folder), *start_rows()]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
