"""What turns ``docs/`` into a site, beside MkDocs: pages made from code, the notebook, and links that leave the folder.

The pages are written so that they read well as plain Markdown in a repository's viewer. There a link may lead to any
file of the repository; a site has the files below ``docs/`` only, so others are brought along or lose their link.
"""

import base64
import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs_reference import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]

BROUGHT_ALONG = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "tests/reliability/README.md": "reliability-tests.md",
    "reports/reference/amd-epyc-2-cores/claims.png": "assets/claims.png",
    "docs/tutorial.ipynb": "notebook.md",
}
"""Files of the repository, and what they are on the site."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file below ``docs/`` holds."""
    for name, text in pages():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for source, name in BROUGHT_ALONG.items():
        path = REPOSITORY / source
        if path.suffix == ".ipynb":
            for target, content in notebook(json.loads(path.read_text()), Path(name).stem):
                files.append(File.generated(config, target, content=content))
        elif path.suffix == ".md":
            files.append(File.generated(config, name, content=path.read_text()))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead to pages of the site, and take those away that lead to files it does not have."""
    here = page.file.src_uri
    if page.is_homepage:
        # It would name this page alone.
        page.meta["hide"] = ["navigation"]
    source = next((source for source, name in BROUGHT_ALONG.items() if name == here), f"docs/{here}")
    return LINK.sub(lambda link: _link(link, source, here), markdown)


def _link(link: re.Match[str], source: str, page: str) -> str:
    image, text, address = link.groups()
    path, mark, anchor = address.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target in BROUGHT_ALONG:
        found = BROUGHT_ALONG[target]
    elif target.startswith("docs/"):
        found = target.removeprefix("docs/")
    elif (REPOSITORY / target).exists():
        return text if text.startswith("`") else f"{text} (`{target}`)"
    else:
        # MkDocs names it, and the page that it is on.
        return link[0]
    return f"{image}[{text}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{mark}{anchor})"


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of Sphinx, which docstrings have, before the names that they mark."""
    return re.sub(r":(?:func|class|mod|meth|attr):(?=<code>)", "", html)


def notebook(cells: Mapping[str, Any], name: str) -> list[tuple[str, str | bytes]]:
    """Turn a notebook into a page and its pictures.

    Args:
        cells: The notebook, as its JSON says.
        name: The page's name, without a suffix.

    Returns:
        Paths on the site with their content; the page comes first.
    """
    lines: list[str] = []
    pictures: list[tuple[str, str | bytes]] = []
    for cell in cells["cells"]:
        text = "".join(cell["source"])
        lines += [text, ""] if cell["cell_type"] == "markdown" else ["```python", text, "```", ""]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                path = f"assets/{name}-{len(pictures)}.png"
                pictures.append((path, base64.b64decode("".join(data["image/png"]))))
                lines += [f"![What the cell above draws]({path})", ""]
            elif "text/plain" in data:
                lines += ["```text", "".join(data["text/plain"]), "```", ""]
    return [(f"{name}.md", "\n".join(lines)), *pictures]
