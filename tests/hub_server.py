"""A hub of one model in the tests' own process: as much of its protocol as a download asks for."""

import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a folder as ``hub_id``; ``asked`` lists the files that were read."""

    def __init__(self, hub_id: str, folder: Path):
        self.asked: list[str] = []
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(send=False)

            def do_GET(self) -> None:
                self.answer(send=True)

            def answer(self, send: bool) -> None:
                path = self.path.partition("?")[0]
                if path.startswith(f"/api/models/{hub_id}"):
                    if "/tree/" in path:
                        listing: object = [
                            {"type": "file", "path": n, "size": f.stat().st_size, "oid": n}
                            for n, f in files.items()
                        ]
                    else:
                        siblings = [{"rfilename": name} for name in files]
                        listing = {"id": hub_id, "sha": COMMIT, "siblings": siblings}
                    self.give(json.dumps(listing).encode(), send, "application/json")
                    return
                name = path.partition(f"/{hub_id}/resolve/")[2].partition("/")[2]
                if name not in files:
                    self.send_error(404)
                    return
                if send:
                    asked.append(name)
                self.give(files[name].read_bytes(), send, "application/octet-stream")

            def give(self, content: bytes, send: bool, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if send:
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
