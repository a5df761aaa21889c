"""An OpenID Connect issuer on loopback that can begin to answer by single bytes."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from chatkeep.keys import WRITE_ANY_ROLE

AUDIENCE = "attacks"
DRIP_SECONDS = 1.0


class Issuer:
    """Its key, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.drips = False
        self._key = rsa.generate_private_key(65537, 2048)

    def token(self, owner: str) -> str:
        """A token that is valid for an hour."""
        claims = {
            "sub": owner,
            "aud": AUDIENCE,
            "iss": self.url,
            "exp": int(time.time()) + 3_600,
            "scope": WRITE_ANY_ROLE,
        }
        return jwt.encode(claims, self._key, "RS256", headers={"kid": "known"})

    def document(self, path: str) -> bytes:
        """What lies at a path: the discovery document or the keys."""
        if "well-known" in path:
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys"}).encode()
        key: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": "known", "use": "sig"}]}).encode()


@contextmanager
def issuing() -> Iterator[Issuer]:
    """An issuer that runs."""
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = issuer.document(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            step = 1 if issuer.drips else len(body)
            try:
                for start in range(0, len(body), step):
                    if issuer.drips:
                        time.sleep(DRIP_SECONDS)
                    self.wfile.write(body[start : start + step])
            except OSError:
                pass  # the server has had enough

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
