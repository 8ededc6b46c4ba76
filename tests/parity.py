"""Tensors that depend on a name only, and what released networks output for them: `fixtures/README.md`."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).with_name("fixtures")


def fixture(name):
    """The content of a file of `fixtures/`."""
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def drawn(name, shape):
    """Standard normal numbers that depend on a name only."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def filled(name, shape):
    """The tensor of a network that is drawn from its name, on the scale of a trained one."""
    leaf = name.replace("/", ".").rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    values = drawn(name, shape)
    if leaf in ("running_var", "moving_variance"):
        return 1 + 0.1 * values.abs()
    if len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[:-1] if leaf == "kernel" else shape[1:]))
    return 1 + 0.1 * values if leaf in ("weight", "gamma") else 0.1 * values
