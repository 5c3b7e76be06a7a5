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

PROMPT = "a fox on a pale blue background"
SETTINGS = [("own settings", {}), ("recommended, 8 steps", {"preset": "recommended", "steps": 8})]


def seconds(work: Callable[[], object]) -> float:
    """One call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
    alone = seconds(lambda: subprocess.run([sys.executable, "-c", "import kilopix"], check=True))
    started = time.perf_counter()
    import torch

    from kilopix import Generator

    imported = time.perf_counter() - started
    torch.set_num_threads(arguments.threads)
    generator: Generator
    started = time.perf_counter()
    generator = Generator.from_pretrained(arguments.model, "cpu")
    loaded = time.perf_counter() - started
    first = seconds(lambda: generator(PROMPT))
    parameters = sum(p.numel() for p in generator.network.parameters()) / 1e6
    size = generator.recipe.data.image_size
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}; "
        f"{arguments.model}: {parameters:.1f} million parameters, {size} x {size} pixels"
    )
    print("\n| | seconds |\n|---|---|")
    print(f"| `import kilopix`, in a process of its own | {alone:.2f} |")
    print(f"| `from kilopix import Generator` (torch) | {imported:.2f} |")
    print(f"| load the weights | {loaded:.2f} |")
    print(f"| first picture, with loading the text encoder | {first:.2f} |")
    warm(generator, arguments.repeats, "")
    if arguments.compile:
        generator.network.compile()
        print(f"| compiling, with a picture | {seconds(lambda: generator(PROMPT)):.2f} |")
        warm(generator, arguments.repeats, ", compiled")


def warm(generator, repeats: int, note: str) -> None:
    """Pictures after the first."""
    for title, settings in SETTINGS:
        generator(PROMPT, **settings)
        times = [seconds(lambda s=settings, i=i: generator(PROMPT, seed=i, **s)) for i in range(repeats)]
        print(f"| warm picture, {title}{note} | {statistics.median(times):.3f} |")
        new = [seconds(lambda s=settings, i=i: generator(f"{PROMPT} {i}", **s)) for i in range(repeats)]
        if not note:
            print(f"| warm picture of a new text, {title} | {statistics.median(new):.3f} |")
        four = seconds(lambda s=settings: generator(PROMPT, num_images=4, **s))
        print(f"| four warm pictures at once, {title}{note} | {four:.3f} |")


if __name__ == "__main__":
    main()
