"""A file server on the loopback that is slow, breaks off, refuses ranges or lies, as it is told."""

import contextlib
import http.server
import re
import threading
import time


class FileServer:
    """Serves bytes by path.

    Attributes:
        files: {path: bytes}.
        requests: (path, value of the Range header or "") of each request, in order.
        break_after: bytes after which a response breaks off, one for each of the next responses.
        has_ranges: whether Range headers are heeded.
        seconds_per_piece: pause after every 64 bytes.
        status: answer with this status instead.
    """

    def __init__(self):
        self.files, self.requests, self.break_after = {}, [], []
        self.has_ranges, self.seconds_per_piece, self.status = True, 0.0, None
        self.redirect = ""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def answer(self, handler):
        asked = handler.headers.get("Range", "")
        self.requests.append((handler.path, asked))
        content = self.files.get(handler.path.split("://")[-1])
        if self.redirect or self.status or content is None:
            handler.send_response(302 if self.redirect else self.status or 404)
            if self.redirect:
                handler.send_header("Location", self.redirect)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked) if self.has_ranges else None
        start = int(match[1]) if match else 0
        if match and start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if match else 200)
        if match:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start:]
        if self.break_after:
            body = body[: self.break_after.pop(0)]
        step = 64 if self.seconds_per_piece else max(len(body), 1)
        for first in range(0, len(body), step):
            handler.wfile.write(body[first : first + step])
            time.sleep(self.seconds_per_piece)
        handler.close_connection = True
