"""The bucket in memory, which most tests use, answers as moto's S3 server does."""

from __future__ import annotations

import re

import pytest

from tests.support.s3_server import MemoryBucket, S3Server

CHANGE = {"If-Match": '"9a0364b9e99bb480dd25e1f0284c8555"'}
ONCE = {"If-None-Match": "*"}
GONE = b"<Delete><Object><Key>log/b&amp;c</Key></Object><Object><Key>none</Key></Object></Delete>"
REQUESTS = (
    ("GET", "/bucket/log/a", b"", {}),
    ("HEAD", "/bucket/log/a", b"", {}),
    ("PUT", "/bucket/log/a", b"content", CHANGE),
    ("PUT", "/bucket/log/a", b"content", ONCE | {"x-amz-meta-mark": "17"}),
    ("PUT", "/bucket/log/a", b"other", ONCE),
    ("GET", "/bucket/log/a", b"", {}),
    ("GET", "/bucket/log/a", b"", {"Range": "bytes=2-"}),
    ("GET", "/bucket/log/a", b"", {"Range": "bytes=2-3"}),
    ("GET", "/bucket/log/a", b"", {"Range": "bytes=-3"}),
    ("GET", "/none/log/a", b"", {}),
    ("HEAD", "/bucket/log/a", b"", {}),
    ("PUT", "/bucket/log/a", b"second", CHANGE),
    ("PUT", "/bucket/log/a", b"third", CHANGE),
    ("PUT", "/bucket/log/b%26c", b"", {}),
    ("PUT", "/bucket/logs/d", b"", {}),
    ("GET", "/bucket?list-type=2&prefix=log%2F", b"", {}),
    ("GET", "/bucket?list-type=2&prefix=l&max-keys=2", b"", {}),
    ("GET", "/bucket?list-type=2&prefix=none%2F", b"", {}),
    ("POST", "/bucket?delete", GONE, {"Content-Type": "application/xml"}),
    ("GET", "/bucket?list-type=2&prefix=log", b"", {}),
)
# What obstore reads of an answer.
HEADERS = ("etag", "x-amz-meta-mark", "content-range")
PARTS = re.compile(r"<(Code|Key|ETag|Size|IsTruncated)>(.*?)</")


@pytest.fixture(scope="module")
def moto():
    server = S3Server()
    server.wait()
    yield server
    server.stop()


def read(method, answer):
    status, headers, content = answer
    kept = sorted((name.lower(), value) for name, value in headers if name.lower() in HEADERS)
    if method == "HEAD":
        return status, kept, None
    parts = sorted(PARTS.findall(content.decode()))
    if status >= 400:
        return status, kept, [part for part in parts if part[0] == "Code"]
    return status, kept, parts or content


def test_its_answers_are_those_of_another_server(moto):
    memory = MemoryBucket()
    for method, path, body, headers in REQUESTS:
        wanted = read(method, moto.request(method, path, body, headers))
        assert read(method, memory.request(method, path, body, headers)) == wanted, (method, path, headers)


def test_a_long_list_comes_in_parts():
    memory = MemoryBucket()
    for k in range(5):
        memory.request("PUT", f"/bucket/log/{k}", b"", {})
    path, keys = "/bucket?list-type=2&prefix=log%2F&max-keys=2", []
    token = ""
    while True:
        _, _, content = memory.request("GET", path + token, b"", {})
        keys += re.findall("<Key>(.*?)</Key>", content.decode())
        if not (found := re.search("<NextContinuationToken>(.*?)</", content.decode())):
            break
        token = f"&continuation-token={found[1]}"
    assert keys == [f"log/{k}" for k in range(5)]
