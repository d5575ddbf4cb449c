"""A page's tags and text, read by Python's own parser, and what a page for everybody has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "img", "br"}


@dataclass(eq=False)
class Node:
    """A tag, with what is in it."""

    tag: str
    attributes: dict[str, str | None]
    parent: Node | None = None
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def every(self, tag: str, **attributes: str) -> list[Node]:
        """Those below with the tag, or "*", and the attributes, in the order of the page."""
        found: list[Node] = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = {key.rstrip("_"): value for key, value in attributes.items()}
                same = all(child.attributes.get(key) == value for key, value in wanted.items())
                found += [child] if tag in ("*", child.tag) and same else []
                found += child.every(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.node = self.root = Node("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        node = Node(tag, dict(attrs), self.node)
        self.node.children.append(node)
        if tag not in VOID:
            self.node = node

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.node.tag == tag, f"<{self.node.tag}> is closed by </{tag}>"
            assert self.node.parent is not None
            self.node = self.node.parent

    def handle_data(self, data: str) -> None:
        self.node.children.append(data)


def read(html: str) -> Node:
    """The page as a tree; each tag must be closed in its turn."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.node is reader.root, f"<{reader.node.tag}> is not closed"
    return reader.root


def faults(page: Node) -> list[str]:
    """What keeps somebody from reading the page, as a sentence each."""
    found = []
    if page.every("html")[0].attributes.get("lang") != "en":
        found.append("the page has no language")
    if not page.every("title")[0].text:
        found.append("the page has no title")
    ids = [node.attributes["id"] for node in page.every("*") if "id" in node.attributes]
    found += [f"id {name} is there twice" for name in set(ids) if ids.count(name) > 1]
    for node in page.every("*"):
        for key in ("aria-labelledby", "aria-describedby"):
            for name in (node.attributes.get(key) or "").split():
                if name not in ids:
                    found.append(f"{key} names {name}, which is not there")
        link = node.attributes.get("href") if node.tag == "a" else None
        if link is not None and link.removeprefix("#") not in ids:
            found.append(f"a link leads to {link}")
        if node.tag == "img" and not node.attributes.get("alt"):
            found.append("an image has no text")
        if node.tag == "svg" and node.attributes.get("aria-hidden") != "true":
            drawn = node.attributes.get("role") == "img"
            if not (drawn and node.every("title") and node.every("desc")):
                found.append("a drawing has no text")
        if node.tag == "th" and node.attributes.get("scope") not in ("col", "row", "rowgroup"):
            found.append(f"the heading {node.text!r} has no scope")
        if node.tag == "table":
            around = node.parent.attributes if node.parent else {}
            if not (around.get("tabindex") == "0" and around.get("role") == "region"):
                found.append("a table is not in a region that the keyboard reaches")
            if not around.get("aria-label"):
                found.append("a table's region has no name")
        if node.tag == "details" and not node.every("summary"):
            found.append("what is folded away has no name")
    levels = [int(node.tag[1]) for node in page.every("*") if re.fullmatch("h[1-6]", node.tag)]
    if levels.count(1) != 1 or levels[0] != 1:
        found.append("there is not one first heading")
    found += [
        f"a heading of level {after} follows one of level {before}"
        for before, after in pairwise(levels)
        if after > before + 1
    ]
    return found


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, by WCAG 2.2."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21, by WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(css: str) -> dict[str, dict[str, str]]:
    """The variables of a page's style, in light, in dark and on paper."""
    found: dict[str, dict[str, str]] = {"light": {}, "dark": {}, "print": {}}
    rules = r"(@media ([^{]*)\{\s*)?:root \{([^}]*)\}"
    for _, media, body in re.findall(rules, css):
        which = "dark" if "dark" in media else "print" if "print" in media else "light"
        found[which] |= dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+)", body))
    for which in ("dark", "print"):
        found[which] = found["light"] | found[which]
    return found
