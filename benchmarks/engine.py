"""What the engine costs over the bare network step, in one run: time and memory.

    python benchmarks/engine.py              on a CPU, a DiT and a CAD-I of a few million weights
    python benchmarks/engine.py --device cuda         CAD-I L and DiT-I L at 256 pixels
    python benchmarks/engine.py memory bare|engine KIND DEVICE STEPS       peak, in a process of its own

The bare step is network, loss, backward, clipping, optimizer and average on one batch that lies on the device.
The engine's is `kilopix train`'s own loop: batches read from shards, drawn, checked and copied; guard,
watchdog, log, progress bar. Both are run in turn, in short stretches, and the medians are compared. The shards
are random, of the sizes of real ones.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from kilopix.data.loader import prefetch
from kilopix.data.manifest import Row
from kilopix.data.parts import write_table
from kilopix.data.shards import EMPTY_TEXT, INDEX, ShardIndex, Shards, to_shard, write_index
from kilopix.network import flops_per_image
from kilopix.recipe import Recipe, load_recipe
from kilopix.runtime import sha256_of_file
from kilopix.stages import train
