"""A proxy in front of a bucket's service, which answers with an error while it is told to."""

import contextlib
import http.client
import http.server
import threading
from urllib.parse import urlsplit

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
    def answering(self, status, most=1 << 30):
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
