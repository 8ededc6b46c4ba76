"""A training step that does not compute the gradients of what is held, against a full one that throws them away.

Beside it, what memory format and bf16 do to a step, and how far they move the scores.

Run it by ``deepfake-nb bench freezing``, or alone: ``python benchmarks/freezing.py``.
"""

import json
import time
from types import SimpleNamespace

import numpy as np
import torch

from deepfake_nb.learning.freezing import AlternateFreezing, GradualUnfreezing, wake_norms
from deepfake_nb.learning.training import binary_cross_entropy
from deepfake_nb.networks.devices import seeded
from deepfake_nb.networks.video_resnet import VideoResNet, normalise_clips
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_video
from deepfake_nb.people.scenes import DOMAINS

# clips, frames, pixels: small on a processor, the paper's on a GPU
SHAPES = {"cpu": (4, 8, 64), "cuda": (8, 32, 224)}
TURNS = 6
LESSONS = 12
SPATIAL_STEPS, TEMPORAL_STEPS = 20, 1
GOAL_ALTERNATE, GOAL_GRADUAL, GOAL_DIFFERENCE = 1.0, 2.0, 0.02


def rendered_clips(shape):
    """Clips of rendered people, uint8 (N, T, S, S, 3), and labels, every second one fake."""
    n, frames, size = shape
    clips = [
        render_video(random_identity(at), DOMAINS[at % len(DOMAINS)], frames, size=size, seed=at).images
        for at in range(n)
    ]
    return np.stack(clips), torch.arange(n) % 2


class Step:
    """A network, its optimizer and a batch on a device: what a training step needs."""

    def __init__(self, width, shape, device, layout=torch.contiguous_format, precision=torch.float32):
        clips, labels = rendered_clips(shape)
        with seeded(0, "weights"):
            self.network = wake_norms(VideoResNet(width)).to(device, memory_format=layout)
        self.inputs = normalise_clips(clips).to(device).contiguous(memory_format=layout)
        self.labels, self.device, self.precision = labels.to(device), device, precision
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-6, weight_decay=0.005, fused=True)

    def logits(self):
        """What the network says of the batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.network(self.inputs)

    def seconds(self, before=lambda: None, after_backward=lambda: None):
        """One training step, with something done before it and something behind its backward pass."""
        wait(self.device)
        started = time.perf_counter()
        self.optimizer.zero_grad()
        before()
        binary_cross_entropy(self.logits(), self.labels).mean().backward()
        after_backward()
        self.optimizer.step()
        wait(self.device)
        return time.perf_counter() - started


def wait(device):
    """Until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def with_rule(step, learning, events):
    """Seconds of a step before which a rule's hooks are told."""
    trainer = SimpleNamespace(network=step.network.train(), optimizer=step.optimizer)

    def before():
        for event, number in events:
            getattr(learning, event)(trainer, number)

    return step.seconds(before)


def plain(step, learns):
    """Seconds of a full step that drops the gradients of all parameters but those that are to learn."""
    step.network.train().requires_grad_(True)

    def drop():
        for name, parameter in step.network.named_parameters():
            if name not in learns:
                parameter.grad = None

    return step.seconds(after_backward=drop)


def fastest(*ways):
    """Best seconds of each way, the ways taking turns: other work on the machine only slows."""
    for way in ways:
        way()
    turns = [[way() for way in ways] for _ in range(TURNS)]
    return [min(column) for column in zip(*turns, strict=True)]


def row(name, ours_s, plain_s, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(plain_s / ours_s, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def where(width, shape, device):
    """The sizes of a measurement in words."""
    n, frames, size = shape
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"width {width}, {n} clips of {frames} x {size} x {size}, {on}, best of {TURNS}"


def alternate_row(width, shape, device):
    """A step of alternate freezing, mean over a cycle of 20 spatial steps and a temporal one."""
    rule, step = AlternateFreezing(SPATIAL_STEPS, TEMPORAL_STEPS), Step(width, shape, device)
    found = {}
    for turn, number in (("spatial", 1), ("temporal", SPATIAL_STEPS + 1)):
        learns = rule.learning(step.network, number)
        found[turn] = fastest(
            lambda number=number: with_rule(step, rule, [("on_step_start", number)]),
            lambda learns=learns: plain(step, learns),
        )
    cycle = SPATIAL_STEPS + TEMPORAL_STEPS
    ours_s, plain_s = (
        (SPATIAL_STEPS * spatial + TEMPORAL_STEPS * temporal) / cycle
        for spatial, temporal in zip(*found.values(), strict=True)
    )
    turns = "; ".join(
        f"{turn} step {1000 * a:.0f} ms, plain {1000 * b:.0f} ms" for turn, (a, b) in found.items()
    )
    return row(
        f"freezing: alternate freezing, a training step, width {width}", ours_s, plain_s,
        f"ratio > {GOAL_ALTERNATE:g}", plain_s / ours_s > GOAL_ALTERNATE, f"{turns}; {where(width, shape, device)}",
    )  # fmt: skip


def gradual_row(width, shape, device):
    """A step of gradual unfreezing's first epoch, in which only the head learns."""
    rule, step = GradualUnfreezing(), Step(width, shape, device)
    learns = {name for name, _ in step.network.named_parameters() if name.startswith("head.")}
    ours_s, plain_s = fastest(
        lambda: with_rule(step, rule, [("on_epoch_start", 1)]), lambda: plain(step, learns)
    )
    return row(
        f"freezing: gradual unfreezing, a step of the head alone, width {width}", ours_s, plain_s,
        f"ratio >= {GOAL_GRADUAL:g}", plain_s / ours_s >= GOAL_GRADUAL, where(width, shape, device),
    )  # fmt: skip


def taught(shape, device):
    """The tensors of a network that has learnt the batch by heart, so that its scores lie apart for a reason."""
    step = Step(64, shape, device)
    step.network.train()
    step.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(LESSONS):
        step.seconds()
    for module in step.network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.reset_running_stats()
            module.momentum = None  # the mean over all passes: here, one
    with torch.no_grad():
        step.network(step.inputs)
        logits, projection = step.network.eval()(step.inputs), step.network.head.projection
        projection.weight.mul_(2 / logits.std())  # scores at the very ends would hide any difference
        projection.bias.sub_(logits.mean()).mul_(2 / logits.std())
    return step.network.state_dict()


@torch.no_grad()
def scores(step):
    """P(fake) of the batch."""
    step.network.eval()
    return step.logits().float().sigmoid().cpu()


def format_row(name, tensors, shape, device, **options):
    """A full training step in another memory format or precision against one in plain float32."""
    ours, base = Step(64, shape, device, **options), Step(64, shape, device)
    for step in (ours, base):
        step.network.load_state_dict(tensors)
    found, expected = scores(ours), scores(base)
    difference = (found - expected).abs().max().item()
    everything = dict(base.network.named_parameters())
    ours_s, plain_s = fastest(lambda: plain(ours, everything), lambda: plain(base, everything))
    between = f"scores between {expected.min():.2f} and {expected.max():.2f}"
    note = f"largest difference of a score {difference:.1e}, {between}; {where(64, shape, device)}"
    if plain_s < ours_s:
        note = f"does not pay here; {note}"
    return row(
        f"freezing: {name}, a training step", ours_s, plain_s,
        f"difference of scores <= {GOAL_DIFFERENCE:g}", difference <= GOAL_DIFFERENCE, note,
    )  # fmt: skip


def run(media=None) -> list[dict]:
    """Measure training steps.

    Parameters
    ----------
    media : path, optional
        Not used: the clips are rendered.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[device.type]
    rows = [
        alternate_row(64, shape, device),
        alternate_row(16, shape, device),
        gradual_row(64, shape, device),
    ]
    tensors = taught(shape, device)
    formats = {
        "channels-last-3d": {"layout": torch.channels_last_3d},
        "bf16": {"precision": torch.bfloat16},
        "channels-last-3d and bf16": {"layout": torch.channels_last_3d, "precision": torch.bfloat16},
    }
    return rows + [format_row(name, tensors, shape, device, **options) for name, options in formats.items()]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
