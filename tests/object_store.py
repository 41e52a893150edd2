"""An S3 server in this process: moto's, asked over HTTP as any other."""

import threading
from urllib.request import Request, urlopen

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class Store:
    """The server, behind a door that counts, refuses, or lets nobody in."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.refused: tuple[str, ...] = ()  # methods; LIST is a GET of the bucket
        self.away = False
        self.allowed: int | None = None  # requests before it goes away
        self.breaks_off = 0  # uploads to come
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        urlopen(Request(f"http://127.0.0.1:{self.port}/{BUCKET}", method="PUT"))

    def __call__(self, environ, start):
        method = environ["REQUEST_METHOD"]
        if "list-type" in environ.get("QUERY_STRING", ""):
            method = "LIST"
        self.requests.append(f"{method} {environ['PATH_INFO'].removeprefix(f'/{BUCKET}/')}")
        if self.allowed is not None:
            self.allowed -= 1
            self.away = self.allowed < 0
        if self.away or method in self.refused:
            status, code = ("503", "SlowDown") if self.away else ("403", "AccessDenied")
            start(f"{status} No", [("Content-Type", "application/xml")])
            said = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            return [b"" if method == "HEAD" else said]
        if method == "PUT" and self.breaks_off:
            self.breaks_off -= 1
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]) // 2)
            raise ConnectionResetError
        return self._app(environ, start)

    def uri(self, path: str, secrets: str = "", bucket: str = BUCKET) -> str:
        return f"s3://{secrets}{bucket}/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def returns_after(self, seconds: float) -> None:
        """Goes away at once, for so long."""
        self.away = True
        threading.Timer(seconds, lambda: setattr(self, "away", False)).start()

    def close(self) -> None:
        self._server.shutdown()
