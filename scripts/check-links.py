#!/usr/bin/env python3
"""check-links.py FILE...: checks that every relative link of Markdown files leads to a file and, if it names one, to a
heading. Links to other sites are not followed."""

import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def anchors(file):
    """The ids that GitHub gives to a file's headings."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", FENCE.sub("", file.read_text()), re.MULTILINE):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{repeated}" if repeated else slug)
    return found


def broken(file):
    """Yields what is wrong with each broken link of a file."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", file.read_text()))
    for link in (first or second for first, second in LINK.findall(text)):
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = file.parent / unquote(url.path) if url.path else file
        if not target.exists():
            yield f"{file}: {link}: there is no {target}"
        elif url.fragment and (target.suffix != ".md" or url.fragment not in anchors(target)):
            yield f"{file}: {link}: {target} has no such heading"


def control():
    """The negative control: one good link of each kind passes, and one broken link of each kind is found."""
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory, "page.md")
        page.write_text("# One `two`/three\n[a](page.md) [b](#one-twothree) ![c](no.svg) [d](#no) [e](page.md#no)\n[f]: no.md\n")
        found = [problem.split(": ")[1] for problem in broken(page)]
        assert found == ["no.svg", "#no", "page.md#no", "no.md"], found


control()
problems = [problem for name in sys.argv[1:] for problem in broken(Path(name))]
sys.exit("\n".join(problems) if problems else 0)
