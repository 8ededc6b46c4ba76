"""Codes of many pictures together against one picture at a time, and the paper's classifiers on five thousand codes.

Run it by ``deepfake-nb bench latent``, or alone: ``python benchmarks/latent.py``.
"""

import copy
import json
import time

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from deepfake_nb.learning.generator import shipped_networks
from deepfake_nb.learning.inversion import InversionSettings, inversion_loss, invert
from deepfake_nb.people.portraits import as_inputs, rendered_faces
from deepfake_nb.sections.latent import train_head

STEPS = 100
TOGETHER, ALONE = 16, 3
CODES, EPOCHS = 5000, 12
GOAL_CPU, GOAL_GPU, GOAL_HEADS = 2.5, 20.0, 60.0


def wait(device):
    """Until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain_inversion(image, generator, encoder, loss):
    """One picture (1, 3, R, R) as in-domain inversion's code does it: the target's features at each step, gradients of all weights."""
    with torch.no_grad():
        start = encoder(image)
    codes = start.requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=0.01)
    for _ in range(STEPS):
        with torch.no_grad():
            targets = loss.targets(image)
        optimizer.zero_grad()
        loss(generator.synthesis(codes), codes, targets).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss(generator.synthesis(codes), codes, targets))


def plain_seconds(images, generator, encoder, loss):
    """Seconds a picture the plain way, and the final losses."""
    networks = [generator, encoder, *loss.networks()]
    for network in networks:
        network.requires_grad_(True)
    started = time.perf_counter()
    losses = [plain_inversion(image[None], generator, encoder, loss) for image in images]
    wait(images.device)
    taken = (time.perf_counter() - started) / len(images)
    for network in networks:
        network.requires_grad_(False)
    return taken, np.array(losses)


def our_seconds(images, generator, encoder, loss, **options):
    """Seconds a picture, and what was found."""
    settings = InversionSettings(steps=STEPS, batch_size=TOGETHER, **options)
    started = time.perf_counter()
    found = invert(images, generator, encoder, loss, settings)
    wait(images.device)
    return (time.perf_counter() - started) / len(images), found


def row(name, ours_s, plain_s, ratio, goal, met, note):
    """One result of a benchmark."""
    numbers = {"ours_s": round(ours_s, 4), "plain_s": round(plain_s, 4), "ratio": round(ratio, 3)}
    return {"name": name, **numbers, "goal": goal, "met": bool(met), "note": note}


def inversion_row(protocol, images, generator, encoder):
    """Many together against one at a time, to the same loss; and what was found together."""
    loss, device = inversion_loss(protocol, encoder, "embedded"), images.device
    for network in loss.networks():
        network.to(device)
    invert(images[:2], generator, encoder, loss, InversionSettings(steps=2))
    plain_s, losses = plain_seconds(images[:ALONE], generator, encoder, loss)
    ours_s, found = our_seconds(images, generator, encoder, loss)
    gap = float(np.abs(found.final_losses[:ALONE].numpy() / losses - 1).max())
    goal = GOAL_GPU if device.type == "cuda" else GOAL_CPU
    note = (
        f"seconds a picture of {generator.resolution} px, {STEPS} steps, {torch.get_num_threads()} threads on {device}; {loss.describe()}; "
        f"{TOGETHER} together, {ALONE} alone; final losses differ by {gap:.1%} at most"
    )
    ratio = plain_s / ours_s
    made = row(f"latent: inversion, {protocol} loss, against one picture at a time", ours_s, plain_s, ratio,
               f"ratio >= {goal:g}", ratio >= goal and gap < 0.03, note)  # fmt: skip
    return made, (loss, ours_s, found)


def stall_row(images, generator, encoder, loss, patient_s, patient):
    """Pictures that stop when they gain too little, against all steps."""
    ours_s, found = our_seconds(images, generator, encoder, loss, stall=10, least_gain=0.05)
    cost = float((found.final_losses / patient.final_losses).mean() - 1)
    note = f"a picture stops when ten steps gain less than 5 %: {found.steps.float().mean():.0f} steps on average; the loss ends {cost:.1%} higher"
    return row(
        "latent: stopping pictures that stall against all steps",
        ours_s,
        patient_s,
        patient_s / ours_s,
        "none",
        True,
        note,
    )


def bf16_row(images, generator, encoder, loss, precise_s, precise):
    """Steps in bf16 against float32."""
    ours_s, found = our_seconds(images, generator, encoder, loss, precision="bf16")
    gap = float((found.final_losses / precise.final_losses).mean() - 1)
    note = f"the loss, taken in float32, ends {gap:+.1%} of that of float32; the default on GPUs alone"
    return row(
        "latent: steps in bf16 against float32", ours_s, precise_s, precise_s / ours_s, "none", True, note
    )


def made_codes(generator):
    """Codes of drawn faces with labels: fakes are moved a little in two of the later layers, so that a forest gets nine in ten right."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = torch.randn(CODES, generator.style_size, generator=rng)
        codes = generator.cpu().truncate(generator.mapping(z), 1.0)
        codes = (codes + 0.3 * codes.std() * torch.randn(codes.shape, generator=rng)).numpy()
    labels = np.arange(CODES) % 2
    codes[labels == 1, 6:8] += 0.15 * codes.std()
    return codes.reshape(CODES, -1), labels


LEARNT, CHOOSING, TESTED = slice(0, 3500), slice(3500, 4250), slice(4250, CODES)


def ranks_row(codes, labels, trees=200):
    """A forest that sees ranks of numbers against one that sees the numbers; learning alone."""
    ranked = train_head("RF", codes[LEARNT], labels[LEARNT], None, trees=trees)
    started = time.perf_counter()
    plain = RandomForestClassifier(trees, random_state=0, n_jobs=-1).fit(codes[LEARNT], labels[LEARNT])
    plain_s = time.perf_counter() - started
    said = ranked.scores(codes[TESTED]) > 0.5, plain.predict(codes[TESTED]) == 1
    right = [float((answers == labels[TESTED]).mean()) for answers in said]
    note = (
        f"{trees} trees on {LEARNT.stop} codes; accuracy {right[0]:.3f} by ranks, {right[1]:.3f} by numbers"
    )
    ratio = plain_s / ranked.seconds
    return row("latent: a forest of ranks against one of numbers", ranked.seconds, plain_s, ratio, "ratio >= 1.2",
               ratio >= 1.2 and right[0] > right[1] - 0.03, note)  # fmt: skip


def heads_row(codes, labels):
    """A forest of 1,500 trees, logistic regression, MLP-2 and MLP-5 on as many codes as a small study has."""
    seconds, right = {}, {}
    for name in ("RF", "LR", "MLP-2", "MLP-5"):
        started = time.perf_counter()
        head = train_head(
            name, codes[LEARNT], labels[LEARNT], (codes[CHOOSING], labels[CHOOSING]), epochs=EPOCHS
        )
        right[name] = float(((head.scores(codes[TESTED]) > 0.5) == labels[TESTED]).mean())
        seconds[name] = time.perf_counter() - started
    taken = sum(seconds.values())
    words = ", ".join(f"{name} {seconds[name]:.1f} s (accuracy {right[name]:.2f})" for name in seconds)
    return row(f"latent: forest and heads on {CODES} codes", taken, GOAL_HEADS, GOAL_HEADS / taken, f"ours_s <= {GOAL_HEADS:g}", taken <= GOAL_HEADS,
               f"{codes.shape[1]} numbers a code, 3,500 learnt, 750 choose the epoch, 750 tested, {EPOCHS} epochs; {words}; plain_s is the goal")  # fmt: skip


def run(media=None) -> list[dict]:
    """Measure inversion and the classifiers of codes.

    Parameters
    ----------
    media : path, optional
        Not used: the pictures are rendered people.

    Returns
    -------
    list of dict
        Rows with name, ours_s, plain_s, ratio, goal, met, note.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = shipped_networks()
    generator, encoder = (
        copy.deepcopy(network).to(device) for network in (networks.generator, networks.encoder)
    )
    images = as_inputs(rendered_faces(TOGETHER, generator.resolution, seed=3)).to(device)
    stated, (loss, seconds, found) = inversion_row("stated", images, generator, encoder)
    published, _ = inversion_row("published", images, generator, encoder)
    rows = [
        stated,
        published,
        stall_row(images, generator, encoder, loss, seconds, found),
        bf16_row(images, generator, encoder, loss, seconds, found),
    ]
    codes = made_codes(generator)
    return [*rows, ranks_row(*codes), heads_row(*codes)]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
