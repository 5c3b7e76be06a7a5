"""How long the first picture takes, and the next: imports, loading, first, warm, in one run on the CPU.

    python benchmarks/generate.py [MODEL] [--threads 2] [--compile]

MODEL is `mini`, the model that is installed with kilopix, if not given. `warm` is the median of several
calls with the text kept; `new text` is a prompt that was not asked for before. Prints one Markdown table.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

PROMPT = "a fox on a pale blue background"
SETTINGS = [("own settings", {}), ("recommended, 8 steps", {"preset": "recommended", "steps": 8})]


@dataclass(frozen=True)
class Taken:
    """Seconds that passed, and seconds of all cores together, which other processes disturb less."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} | {self.cpu:.2f}"


def seconds(work: Callable[[], object]) -> Taken:
    """One call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def middle(times: list[Taken]) -> Taken:
    """Medians."""
    return Taken(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network; needs a C++ compiler"
    )
    arguments = parser.parse_args()
    command = [sys.executable, "-c", "import kilopix"]
    alone = seconds(lambda: subprocess.run(command, check=True)).wall

    def import_it() -> None:
        from kilopix import Generator  # noqa: F401

    imported = seconds(import_it)
    import torch

    from kilopix import Generator

    torch.set_num_threads(arguments.threads)
    loaded = seconds(lambda: Generator.from_pretrained(arguments.model, "cpu"))
    generator = Generator.from_pretrained(arguments.model, "cpu")
    first = seconds(lambda: generator(PROMPT))
    parameters = sum(p.numel() for p in generator.network.parameters()) / 1e6
    size = generator.recipe.data.image_size
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}; "
        f"{parameters:.1f} million parameters, {size} x {size} pixels"
    )
    print("\n| | seconds | seconds of all cores |\n|---|---|---|")
    print(f"| `import kilopix`, in a process of its own | {alone:.2f} | |")
    print(f"| `from kilopix import Generator` (torch) | {imported} |")
    print(f"| load the weights | {loaded} |")
    print(f"| first picture, with loading the text encoder | {first} |")
    warm(generator, arguments.repeats, "")
    if arguments.compile:
        generator.network.compile()
        print(f"| compiling, with a picture | {seconds(lambda: generator(PROMPT))} |")
        warm(generator, arguments.repeats, ", compiled")


def warm(generator, repeats: int, note: str) -> None:
    """Pictures after the first."""
    for title, settings in SETTINGS:
        generator(PROMPT, **settings)
        kept = [seconds(lambda s=settings, i=i: generator(PROMPT, seed=i, **s)) for i in range(repeats)]
        print(f"| warm picture, {title}{note} | {middle(kept)} |")
        if note:
            continue
        new = [seconds(lambda s=settings, i=i: generator(f"{PROMPT} {i}", **s)) for i in range(repeats)]
        print(f"| warm picture of a new text, {title} | {middle(new)} |")
        four = seconds(lambda s=settings: generator(PROMPT, num_images=4, **s))
        print(f"| four warm pictures at once, {title} | {four} |")


if __name__ == "__main__":
    main()
