"""Imported by the process that tests fork: what a first export of a model makes, made once.

It is a second and a half that each sender's fork would spend anew. With one thread, since a fork of
a process that has several waits for those that it doesn't have.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch

from digits.model.export import warm_up

sys.path[:] = [at for at in sys.path if at not in os.environ["PYTHONPATH"].split(os.pathsep)]
THREADS = torch.get_num_threads()
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    warm_up(Path(folder, "model"))
