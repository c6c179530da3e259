"""Hooks of mkdocs: the pages at the top of the repository become pages of the site.

On a forge README.md links to docs/install.md and docs/index.md links to ../README.md. In the site
all pages are in one folder, so the links are rewritten. Flags and names are kept on one line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
PAGES["CHANGELOG.md"] = "changelog.md"
# A longer name may be too wide for a telephone.
LONGEST_WORD = 36


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        for other, other_page in PAGES.items():
            text = text.replace(f"]({other}", f"]({other_page}")
        # Not a page: the name of the licence without its link.
        text = re.sub(r"\[([^]]*)\]\(LICENSE\)", r"\1", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrites the links to these pages."""
    for name, page in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Marks the words of code within text: a browser would break them after each hyphen."""

    def mark(code: re.Match[str]) -> str:
        word = rf"(?<!\S)\S{{2,{LONGEST_WORD}}}(?!\S)"
        return "<code>" + re.sub(word, r'<span class="word">\g<0></span>', code[1]) + "</code>"

    return re.sub(r"<code>([^<\n]*)</code>", mark, html)
