"""Collect English technical prose from documentation under permissive licences, installed on the machine.

    python collect_prose.py OUT --rust HTML --python LIB... --node DOC --packages SITE_PACKAGES
    xz -c OUT/train.txt > data/prose.txt.xz

HTML is a Rust toolchain's share/doc/rust/html, LIB a Python's lib/python3.x, DOC a folder of Node.js
documentation, SITE_PACKAGES a folder with the packages of PACKAGES. Writes OUT/{train,eval_public,eval_private}.txt
(training documents parted by a record separator) and sources.json with counts and bytes.

A document is a page, module or topic; a hash of its name decides its split. Paragraphs seen before are dropped,
evaluation documents first, so that no evaluation paragraph occurs in the training text.
"""
import argparse
import ast
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

BOOKS = ["book", "reference", "nomicon", "cargo", "rust-by-example", "embedded-book", "edition-guide",
         "rustc", "rustdoc", "clippy", "error_codes", "style-guide", "unstable-book"]
PACKAGES = {"torch": "BSD-3-Clause", "numpy": "BSD-3-Clause", "sympy": "BSD-3-Clause", "networkx": "BSD-3-Clause",
            "coremltools": "BSD-3-Clause", "click": "BSD-3-Clause", "transformers": "Apache-2.0",
            "tokenizers": "Apache-2.0", "huggingface_hub": "Apache-2.0", "mlx_lm": "MIT", "pip": "MIT",
            "setuptools": "MIT", "rich": "MIT"}
EVAL_SOURCES = {"rust-books", "rust-std", "python-docs", "node-docs"}
EVAL_PER_MILLE = 18  # for the public and for the private set each

BLOCK_TAGS = {"p", "li", "h1", "h2", "h3", "h4", "h5", "pre", "tr", "dt", "dd", "blockquote", "div", "section", "table"}
SKIP_TAGS = {"script", "style", "nav", "head", "button", "svg", "noscript", "footer", "summary"}


class PlainText(HTMLParser):
    """The readable text of a page, one block per paragraph."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.skipped, self.preformatted = [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.skipped += tag in SKIP_TAGS
        self.preformatted += tag == "pre"
        if tag in BLOCK_TAGS and (tag == "pre" or not self.preformatted):
            self.parts.append("\n\n")
        if tag in ("li", "br"):
            self.parts.append("- " if tag == "li" else "\n")

    def handle_endtag(self, tag):
        self.skipped = max(0, self.skipped - (tag in SKIP_TAGS))
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        if tag in BLOCK_TAGS and not self.preformatted:
            self.parts.append("\n\n")

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def plain(html):
    parser = PlainText()
    parser.feed(html)
    return "".join(parser.parts)


def page_text(html):
    start = html.find("<main")
    return plain(html[start:html.rfind("</main>")] if start >= 0 else html)


DOCBLOCK = re.compile(r'<div class="docblock[^"]*">(.*?)</div>\s*(?=<|$)', re.S)


def rustdoc_text(html):
    """Only the written documentation of an API page, not its signatures."""
    return "\n\n".join(plain(block) for block in DOCBLOCK.findall(html))


def docstrings(path):
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
        return ""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node)
            if doc and len(doc) > 80:
                found.append(f"{node.name}: {doc}" if hasattr(node, "name") else doc)
    return "\n\n".join(found)


def rust(html):
    for book in BOOKS:
        for page in sorted((html / book).rglob("*.html")):
            inner = page.relative_to(html / book)
            old_or_translated = book in {"rust-by-example", "book"} and len(inner.parts) > 2
            if page.name not in {"print.html", "toc.html", "404.html", "searchindex.html"} and not old_or_translated:
                yield "rust-books", "MIT OR Apache-2.0", f"{book}/{inner}", page_text(page.read_text("utf-8", "replace"))
    for crate in ["std", "alloc", "core"]:
        for page in sorted((html / crate).rglob("*.html")):
            inner = page.relative_to(html / crate)
            if inner.parts[0] not in {"arch", "simd", "core_arch", "core_simd"} and page.stat().st_size <= 900_000:
                yield "rust-std", "MIT OR Apache-2.0", f"{crate}/{inner}", rustdoc_text(page.read_text("utf-8", "replace"))


def python(lib):
    space = {}
    exec((lib / "pydoc_data/topics.py").read_text("utf-8"), space)  # one dict of the language's help topics
    for topic, text in sorted(space["topics"].items()):
        yield "python-docs", "PSF-2.0", f"topic/{topic}", text
    for page in sorted(lib.rglob("*.py")):
        inner = page.relative_to(lib)
        if inner.parts[0] not in {"site-packages", "idlelib", "lib2to3"} and not {"test", "tests"} & set(inner.parts):
            yield "python-docs", "PSF-2.0", f"lib/{inner}", docstrings(page)


def node(folder):
    for page in sorted(folder.rglob("*.md")) + sorted((folder / "api").rglob("*.html")):
        if page.name not in {"all.html", "all.md"} and "changelog" not in str(page).lower():
            text = page.read_text("utf-8", "replace")
            yield "node-docs", "MIT", f"node/{page.stem}", page_text(text) if page.suffix == ".html" else text


def packages(site):
    for package, licence in PACKAGES.items():
        for page in sorted((site / package).rglob("*.py")):
            inner = page.relative_to(site)
            if "test" not in str(inner).lower():
                yield "python-packages", licence, str(inner), docstrings(page)


def split_of(source, name):
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 1000
    if source not in EVAL_SOURCES or bucket >= 2 * EVAL_PER_MILLE:
        return "train"
    return "eval_public" if bucket < EVAL_PER_MILLE else "eval_private"


def paragraphs(text):
    text = text.replace("\r", "").replace("\u00a0", " ").replace("\x00", "")
    for block in re.split(r"\n\s*\n", re.sub(r"[ \t]+\n", "\n", text)):
        if block.strip():
            yield block.strip("\n").rstrip()


def is_prose(block):
    letters = len(re.findall(r"[A-Za-z ]", block))
    return len(block) >= 40 and letters / len(block) > 0.80 and " " in block


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rust", type=Path, nargs="*", default=[])
    parser.add_argument("--python", type=Path, nargs="*", default=[])
    parser.add_argument("--node", type=Path, nargs="*", default=[])
    parser.add_argument("--packages", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    found = [document for read in (rust, python, node, packages)
             for folder in getattr(args, read.__name__) for document in read(folder)]
    documents = sorted(((split_of(source, name), source, licence, text) for source, licence, name, text in found),
                       key=lambda d: d[0] == "train")

    args.out.mkdir(parents=True, exist_ok=True)
    files = {s: open(args.out / f"{s}.txt", "w", encoding="utf-8") for s in ("train", "eval_public", "eval_private")}
    seen, sources = set(), {}
    for split, source, licence, text in documents:
        kept = []
        for block in paragraphs(text):
            key = hashlib.md5(re.sub(r"\W+", "", block).lower().encode()).digest()
            # training text also keeps code blocks and short lines
            if key not in seen and (split == "train" or is_prose(block)):
                kept.append(block)
            seen.add(key)
        body = "\n\n".join(kept)
        if len(body) >= 200:
            files[split].write(body + ("\n\x1e\n" if split == "train" else "\n\n"))
            row = sources.setdefault(f"{source} ({licence})", {}).setdefault(split, {"documents": 0, "bytes": 0})
            row["documents"] += 1
            row["bytes"] += len(body.encode())
    for file in files.values():
        file.close()
    (args.out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    print(json.dumps(sources, indent=1))


if __name__ == "__main__":
    main()
