"""What mkdocs needs to make a site of a repository whose pages also link to each other where they
lie.

The README is the first page, files beside ``docs/`` that a page links to are part of the site, and
the links between ``docs/`` and what is beside it lose the step that the site does not have.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as index.md, the other pages beside ``docs/``, and the examples as they
    are."""
    examples = (
        f"examples/{path.name}" for path in sorted((ROOT / "examples").iterdir()) if path.is_file()
    )
    places = {"index.md": "README.md"} | {name: name for name in (*BESIDE, *examples)}
    for place, source in places.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``docs/methods.md`` (from beside docs) and ``../SECURITY.md`` (from within) lie side by side
    on the site."""
    markdown = re.sub(r'(\]\(|src=")(?:docs/|\.\./)', r"\1", markdown)
    return markdown.replace("](README.md", "](index.md")
