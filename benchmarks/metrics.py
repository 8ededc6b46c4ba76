"""Thousands of resamples as weights of rows sorted once, against a loop over scikit-learn.

Run it by ``deepfake-nb bench metrics``, or alone: ``python benchmarks/metrics.py``.
"""

import json
import os
import sys
import time

import numpy as np
import pandas as pd

from deepfake_nb.evaluation.metrics import METRICS, bootstrap

GOAL_S = 2.0
N_MEDIA = 1000
N_FRAMES = 30
RESAMPLES = 10_000
PLAIN_SHARE = 0.02
REPEATS = 3


def make_predictions(n_frames=1):
    """Scores of a detector with an AUC near 0.8 on as many real as fake media."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], N_MEDIA // 2)
    of_media = 1.2 * labels + rng.standard_normal(N_MEDIA)
    logits = (of_media[:, None] + 0.5 * rng.standard_normal((N_MEDIA, n_frames))).ravel()
    media = np.repeat([f"{number:04d}" for number in range(N_MEDIA)], n_frames)
    return pd.DataFrame(
        {"media_id": media, "label": labels.repeat(n_frames), "score": 1 / (1 + np.exp(-logits))}
    )


def in_a_loop(predictions, metrics, resamples):
    """The plain way: draw media files, collect their rows, call scikit-learn; once for each resample."""
    rng = np.random.default_rng(0)
    labels, scores = predictions.label.to_numpy(), predictions.score.to_numpy()
    files = list(predictions.groupby("media_id").indices.values())
    classes = [[rows for rows in files if labels[rows[0]] == label] for label in (0, 1)]
    for _ in range(resamples):
        rows = np.concatenate(
            [of_class[i] for of_class in classes for i in rng.integers(len(of_class), size=len(of_class))]
        )
        for metric in metrics:
            METRICS[metric].plain(labels[rows], scores[rows], 0.5)


def seconds(work, *arguments):
    """Wall time of one call."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def compare(name, predictions, metrics, resamples, goal_s):
    """One row; of the plain way a share is run, and its time scaled up."""
    few = round(resamples * PLAIN_SHARE)
    ours_s = min(seconds(bootstrap, predictions, metrics, 0.5, resamples) for _ in range(REPEATS))
    plain_s = seconds(in_a_loop, predictions, metrics, few) * resamples / few
    what = f"{resamples} resamples of {N_MEDIA} media, {len(predictions)} rows; best of {REPEATS} turns"
    return {
        "name": f"metrics: {name}",
        "ours_s": round(ours_s, 4),
        "plain_s": round(plain_s, 4),
        "ratio": round(plain_s / ours_s, 3),
        "goal": f"ours < {goal_s:g} s",
        "met": ours_s < goal_s,
        "note": f"{what}; plain is scaled from {few} resamples; {os.cpu_count()} cores, one used",
    }


def run(media=None) -> list[dict]:
    """Measure resampling.

    Parameters
    ----------
    media : path, optional
        Not used: predictions are simulated.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    stills, frames = make_predictions(), make_predictions(N_FRAMES)
    return [
        compare("interval of the AUC", stills, ["auc"], RESAMPLES, GOAL_S),
        compare(f"intervals of all {len(METRICS)} metrics", stills, list(METRICS), RESAMPLES, GOAL_S),
        compare("interval of the AUC of frames", frames, ["auc"], RESAMPLES // 5, GOAL_S),
    ]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:2]), indent=1))
