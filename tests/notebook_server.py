"""Run notebooks as `nbdev_test` does, each in a process of its own in which the libraries are loaded already.

Imports take longer than most notebooks. So this process imports what others wrote, and forks for every line of its input: the child
has nothing of this package in it, and nothing of another notebook. The answer to a line is the exit status of the child.
"""

import importlib
import json
import os
import sys

# Not onnxruntime: it starts a thread when it is imported, and a fork of it waits for that thread for ever when it ends.
LIBRARIES = ("nbdev.test", "accelerate", "av", "cv2", "matplotlib.pyplot", "pandas", "scipy.stats", "sklearn.ensemble",
             "timm", "torchvision")  # fmt: skip


def run_notebook(notebook, output, environment):
    """Run a notebook in this process; what it says goes to a file."""
    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, mode), stream)
    os.dup2(1, 2)
    os.environ |= environment
    importlib.import_module("nbdev.test").nbdev_test(path=notebook, do_print=True, n_workers=0)


def main():
    for name in (
        LIBRARIES if sys.platform == "linux" else ()
    ):  # elsewhere a fork may not survive what they started
        importlib.import_module(name)
    for line in sys.stdin:
        if os.fork() == 0:
            return run_notebook(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)


if __name__ == "__main__":
    main()
