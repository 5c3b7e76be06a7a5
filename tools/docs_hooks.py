"""Hooks of the documentation's build: pages that live outside of docs/ and what is written for GitHub.

In: the files that MkDocs found in docs/, and the text of each page. Out: the changelog and the results of the
benchmarks as pages beside them, and links that lead to those pages.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
LOG, RESULTS = BENCHMARKS / "log.md", BENCHMARKS / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere in the repository."""
    files.append(_page(config, "changelog.md", ROOT / "CHANGELOG.md"))
    files.append(_page(config, LOG.name, LOG))
    for path in sorted(RESULTS.glob("*.md")):
        files.append(_page(config, f"results/{path.name}", path))
    return files


def _page(config: MkDocsConfig, name: str, path: Path) -> File:
    return File.generated(config, name, abs_src_path=str(path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages that were added, and links into docs/ to their pages."""
    if page.file.src_uri.startswith("results/"):
        return re.sub(r"\]\((?:\.\./)+docs/", "](../", markdown)
    if page.file.src_uri == "changelog.md":
        return markdown.replace("](docs/", "](")
    return re.sub(r"\]\((?:\.\./)+benchmarks/(results/|log\.md)", rf"]({_up(page)}\1", markdown)


def _up(page: Page) -> str:
    return "../" * page.file.src_uri.count("/")
