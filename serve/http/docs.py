"""Page `/docs` to try requests on: Swagger UI and its files, read and compressed once."""

from __future__ import annotations

import gzip
import html
from functools import cache
from importlib.resources import files
from string import Template
from zlib import crc32

# Swagger UI has icons in `data:` URLs.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OF_PAGE = ((b"content-security-policy", POLICY), (b"cache-control", b"no-cache"))
# The page asks for each file with the checksum of all.
OF_FILES = ((b"cache-control", b"public, max-age=31536000, immutable"), (b"vary", b"accept-encoding"))
KINDS = {"html": b"text/html; charset=utf-8", "css": b"text/css; charset=utf-8", "js": b"text/javascript"}
# The files of the page and their packages, by path.
FILES = {
    "/docs/swagger-ui.css": "serve.report.assets",
    "/docs/docs.css": "serve.http",
    "/docs/swagger-ui-bundle.js": "serve.report.assets",
    "/docs/docs.js": "serve.http",
}


@cache
def contents() -> dict[str, tuple[bytes, bytes]]:
    """Return the files of the page by path, as they are and in gzip; the first call takes 50 ms."""
    read = {path: _read(package, path.rpartition("/")[2]) for path, package in FILES.items()}
    return {path: (content, gzip.compress(content, mtime=0)) for path, content in read.items()}


def docs_page(title: str) -> bytes:
    """Return the page; its addresses are relative, so it works below any route prefix."""
    version = crc32(b"".join(zipped for _, zipped in contents().values()))
    page = Template(_read("serve.http", "docs.html").decode())
    return page.substitute(title=html.escape(title), version=f"{version:08x}").encode()


def _read(package: str, name: str) -> bytes:
    return files(package).joinpath(name).read_bytes()
