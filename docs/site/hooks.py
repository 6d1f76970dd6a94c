"""Build the site from the repository's own Markdown, so that nothing is written twice.

Files at the root of the repository become pages of the site. Links between Markdown files are written
for GitHub and are rewritten to the site's pages. A link to a file outside the site becomes text, or a
link to the repository if mkdocs.yml has a `repo_url`.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Files outside of docs/ -> their pages.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/RESULTS.md": "measured.md",
}
SOURCES = {page: source for source, page in PAGES.items()}

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    root = posixpath.dirname(config.config_file_path)
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=posixpath.join(root, source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Rewrite the repository's links to the site's. Code stays as it is."""
    path = page.file.src_uri
    source = SOURCES.get(path, f"docs/{path}")
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [_with_links(markdown[end : code.start()], source, path, config), code[0]]
        end = code.end()
    return "".join([*parts, _with_links(markdown[end:], source, path, config)])


def _title(path: str) -> str:
    """A page's first heading."""
    lines = Path(path).read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("# "))[2:].strip()


def _with_links(text: str, source: str, path: str, config: MkDocsConfig) -> str:
    def turned(link: re.Match[str]) -> str:
        target, hash_, anchor = link["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if wanted in PAGES:
            inside = PAGES[wanted]
        elif wanted.startswith("docs/"):
            inside = wanted.removeprefix("docs/")
        elif config.repo_url:
            return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/HEAD/{wanted})"
        else:
            return link["text"] if link["text"] == wanted else f"{link['text']} (`{wanted}`)"
        here = posixpath.relpath(inside, posixpath.dirname(path) or ".")
        text = link["text"]
        # A file name is good link text in the repository, but not in the site.
        if text.endswith(".md"):
            text = _title(posixpath.join(posixpath.dirname(config.config_file_path), wanted))
        return f"{link['image']}[{text}]({here}{hash_}{anchor})"

    return LINK.sub(turned, text)
