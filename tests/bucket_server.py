"""A server of buckets on this machine, for the requests that gcsfs makes of Google's.

What the JSON API promises and the tests need: an object appears whole, it can be written on the
condition that there is none, and it is never renamed.
"""

import base64
import contextlib
import http.server
import json
import threading
import time
import zlib
from urllib.parse import parse_qs, unquote, urlsplit


class BucketServer:
    """Serves one bucket from memory.

    Attributes:
        url: of the server, what STORAGE_EMULATOR_HOST is set to.
        objects: content by name.
    """

    def __init__(self):
        """Binds a port; `running` serves."""
        self.objects, self._generations, self._lock = {}, {}, threading.Lock()
        self._uploads = {}
        owner = self

        class Handler(_Handler):
            store = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self):
        """Serves while the block runs."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def put(self, name, content, only_new):
        """Writes an object; None where there is one and none may be."""
        with self._lock:
            if only_new and name in self.objects:
                return None
            self.objects[name] = bytes(content)
            self._generations[name] = time.time_ns() // 1000
            return self.describe(name)

    def describe(self, name):
        """The object's resource."""
        content, generation = self.objects[name], self._generations[name]
        written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(generation / 1e6))
        crc = zlib.crc32(content).to_bytes(4, "big")  # gcsfs does not look at it
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(content)),
            "generation": str(generation),
            "etag": base64.b64encode(crc).decode(),
            "timeCreated": f"{written}.{generation % 10**6:06d}Z",
            "updated": f"{written}.{generation % 10**6:06d}Z",
        }


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Nothing: clients are killed."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, query = self._read_address()
        _, _, name = path.partition("/b/bucket/o")
        if "/b/bucket/o" not in path:
            self._answer({"name": "bucket", "kind": "storage#bucket"})
        elif not name:
            self._list(query)
        elif name[1:] not in self.store.objects:
            self._answer({"error": {"code": 404, "message": "no such object"}}, 404)
        elif query.get("alt") == "media" or path.startswith("/download"):
            self._send(self.store.objects[name[1:]])
        else:
            self._answer(self.store.describe(name[1:]))

    def do_POST(self):
        path, query = self._read_address()
        content = self._read_content()
        if path.startswith("/resumable/"):
            self._append(self.store._uploads[path.rpartition("/")[2]], content)
            return
        if "/rewriteTo/" in path:
            source, _, target = path.partition("/rewriteTo/b/bucket/o/")
            copied = self.store.objects[source.partition("/b/bucket/o/")[2]]
            self._answer({"done": True, "resource": self.store.put(target, copied, False)})
            return
        only_new = query.get("ifGenerationMatch") == "0"
        if query["uploadType"] == "resumable":
            name = json.loads(content)["name"]
            key = str(len(self.store._uploads))
            self.store._uploads[key] = [name, b"", only_new]
            self._answer({}, headers={"Location": f"{self.store.url}/resumable/{key}"})
            return
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
        _, metadata, media, _ = content.split(b"--" + boundary)
        name = json.loads(metadata.partition(b"\n\n")[2] or metadata.partition(b"\r\n\r\n")[2])[
            "name"
        ]
        separator = b"\r\n\r\n" if b"\r\n\r\n" in media else b"\n\n"
        end = 2 if media.endswith(b"\r\n") else 1
        self._finish(name, media.partition(separator)[2][:-end], only_new)

    def _append(self, upload, content):
        """A part of a large object, which is one when all parts are there."""
        upload[1] += content
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total != "*" and int(total) == len(upload[1]):
            self._finish(*upload)
        else:
            self._answer({}, 308, {"Range": f"bytes=0-{len(upload[1]) - 1}"})

    def do_DELETE(self):
        path, _ = self._read_address()
        name = path.partition("/b/bucket/o/")[2]
        is_there = self.store.objects.pop(name, None) is not None
        self._answer(
            {} if is_there else {"error": {"message": "no such object"}}, 204 if is_there else 404
        )

    def log_message(self, *arguments):
        pass

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.store.objects):
            if not name.startswith(prefix):
                continue
            first, found, _ = (
                name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            )
            if found:
                prefixes.add(prefix + first + delimiter)
            else:
                items.append(self.store.describe(name))
        self._answer({"items": items, "prefixes": sorted(prefixes)})

    def _finish(self, name, content, only_new):
        written = self.store.put(name, content, only_new)
        if written is None:
            self._answer({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
        else:
            self._answer(written)

    def _read_address(self):
        parts = urlsplit(self.path)
        return unquote(parts.path), {key: v[-1] for key, v in parse_qs(parts.query).items()}

    def _read_content(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content, code=200, headers=None):
        body = b"" if code == 204 else json.dumps(content).encode()
        self._send(body, code, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, body, code=200, headers=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(body)
