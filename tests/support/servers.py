"""Servers on loopback that answer as they are told: of archives, and in front of a bucket."""

import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import scipy.io
import torchvision.datasets

from tests.support import waiting

TRAIN, TEST = 20, 6  # images
FIRST_FILES = {  # what the training half of each kind of set asks the server for first
    "CIFAR10": "cifar-10-python.tar.gz",
    "MNIST": "train-images-idx3-ubyte.gz",
    "SVHN": "train_32x32.mat",
}


class Server(ThreadingHTTPServer):
    """Serves files on the loopback address and notes who fetches what.

    A file's bodies are its answers in turn, the last of them for ever; each announces the length
    of the last, so that a shorter one arrives cut off. With `pause` set, a body stops half-way.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.bodies = defaultdict(list)
        self.fetched = []
        self.pause = None
        self.halfway = threading.Event()


@contextmanager
def serve():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name, bodies = self.path.lstrip("/"), self.server.bodies[self.path.lstrip("/")]
        if not bodies:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(bodies[-1])))
        self.end_headers()
        if "Method" in self.headers:  # torchvision asks first where a redirection leads
            return
        self.server.fetched.append(name)
        body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
        self.wfile.write(body[: len(body) // 2])
        if self.server.pause:
            self.wfile.flush()
            self.server.halfway.set()
            self.server.pause.wait(waiting.scale(60))
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args):
        pass


@contextmanager
def serve_page(status, page, redirect=None):
    """Answer each request with a page; its address, with a user and a password in it.

    Args:
        status: The status of HTTP.
        page: The page's text.
        redirect: Where a first request is sent, such as "/login".
    """

    class PageHandler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_first = redirect is not None and self.path != redirect
            self.send_response(302 if is_first else status)
            if is_first:
                self.send_header("Location", redirect)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page.encode())

        do_POST = do_GET

        def log_message(self, *_):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), PageHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://ada:lovelace@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def offer(monkeypatch, server, name):
    """Put a small set called `name` on the server and point torchvision there.

    Returns:
        Its images, uint8 [n, channels, height, width], and labels: by half, "train" and "test".
    """
    halves, attributes = put_small_set(server, name)
    for attribute, value in attributes.items():
        monkeypatch.setattr(getattr(torchvision.datasets, name), attribute, value)
    return halves


def put_small_set(server, name):
    """Put a small set on the server: what `offer` returns, and torchvision's attributes of it."""
    rng = np.random.default_rng(0)
    shape = (1, 28, 28) if name.endswith("MNIST") else (3, 32, 32)
    halves = {
        half: (rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 10)
        for half, count in (("train", TRAIN), ("test", TEST))
    }
    kind = getattr(torchvision.datasets, name)
    make = {"SVHN": _svhn, "CIFAR10": _cifar, "CIFAR100": _cifar}.get(name, _mnist)
    attributes, files = make(kind, halves, server.url)
    for file, body in files.items():
        server.bodies[file] = [body]
    return halves, attributes


def _md5(content):
    return hashlib.md5(content).hexdigest()


def _cifar(kind, halves, url):
    labels_key = "labels" if kind.__name__ == "CIFAR10" else "fine_labels"
    class_names = [f"class {n}" for n in range(10)]
    members = {kind.meta["filename"]: {kind.meta["key"]: class_names}}
    for half, files in (("train", kind.train_list), ("test", kind.test_list)):
        images, labels = halves[half]
        shares = np.array_split(np.arange(len(images)), len(files))
        for share, (file, _) in zip(shares, files, strict=True):
            rows = images[share].reshape(len(share), -1)
            members[file] = {"data": rows, labels_key: labels[share].tolist()}
    pickled = {file: pickle.dumps(content, protocol=2) for file, content in members.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file, content in pickled.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    attributes = {
        "url": url + kind.filename,
        "tgz_md5": _md5(archive.getvalue()),
        "train_list": [[file, _md5(pickled[file])] for file, _ in kind.train_list],
        "test_list": [[file, _md5(pickled[file])] for file, _ in kind.test_list],
        "meta": {**kind.meta, "md5": _md5(pickled[kind.meta["filename"]])},
    }
    return attributes, {kind.filename: archive.getvalue()}


def _mnist(kind, halves, url):
    files = {}
    for half, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = halves[half]
        contents = {"images-idx3": images[:, 0], "labels-idx1": labels.astype(np.uint8)}
        for name, content in contents.items():
            header = struct.pack(f">{1 + content.ndim}I", 0x0800 + content.ndim, *content.shape)
            files[f"{prefix}-{name}-ubyte.gz"] = gzip.compress(header + content.tobytes())
    resources = [(file, _md5(files[file])) for file, _ in kind.resources]
    return {"mirrors": [url], "resources": resources}, files


def _svhn(kind, halves, url):
    files, split_list = {}, dict(kind.split_list)
    for half, (images, labels) in halves.items():
        _, file, _ = kind.split_list[half]
        content = io.BytesIO()
        digits = np.where(labels == 0, 10, labels)[:, None]  # SVHN's label of the digit 0 is 10
        scipy.io.savemat(content, {"X": images.transpose(2, 3, 1, 0), "y": digits})
        files[file] = content.getvalue()
        split_list[half] = [url + file, file, _md5(files[file])]
    return {"split_list": split_list}, files


_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")  # RFC 9110


class BucketProxy:
    """Hands requests on.

    Args:
        address: Of the service, `http://HOST:PORT`.

    Attributes:
        asked: The method and path of each request.
        refused: How many of them it answered with an error of its own.
        error: The status to answer with in its place; nothing where it is as it should be.
        most: How many times, before it is well again by itself.
    """

    def __init__(self, address):
        self.error, self.most = 0, 0
        self.asked, self.refused = [], 0
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, address))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def responding_with(self, status, most=1 << 30):
        """Within this context requests are answered with an error, at most so many."""
        self.error, self.most = status, most
        try:
            yield
        finally:
            self.error = 0

    def judge(self, line):
        """The status to answer a request with, or nothing where it is handed on."""
        with self._lock:
            self.asked.append(line)
            if not self.error or not self.most:
                return 0
            self.most -= 1
            self.refused += 1
            return self.error


def _handler(proxy, address):
    service = urlsplit(address).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        error_content_type = "application/xml"
        error_message_format = "<Error><Code>%(code)d</Code><Message>%(message)s</Message></Error>"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status := proxy.judge(f"{self.command} {self.path}"):
                self.send_error(status)
                return
            upstream = http.client.HTTPConnection(service, timeout=300)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            # The answer to HEAD has the length of what it does not send.
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            """Nothing."""

    return Handler
