"""A Supabase project's Auth, as far as its tokens go: keys, their public half over HTTP, tokens."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.planted_secrets import JWT_SECRET as SECRET


class Issuer:
    """Signs tokens with ES256 and RS256, and serves the public keys."""

    def __init__(self) -> None:
        self.ec_key = ec.generate_private_key(ec.SECP256R1())
        self.rsa_key = rsa.generate_private_key(65537, 2048)
        self.url = ""
        self.requests = 0
        self.is_away = False
        self.published = ["ec-1", "rsa-1"]
        self.piece_bytes: int | None = None
        """Send the keys in pieces of this size, each in a write of its own."""
        self.padding_bytes = 0

    def token(self, user_id: str = "user-1", *, algorithm: str = "ES256", **claims: Any) -> str:
        """Sign what Supabase signs, with `claims` over it; `None` leaves one out."""
        now = int(time.time())
        payload: dict[str, Any] = {
            "iss": f"{self.url}/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "sub": user_id,
            "iat": now,
            "exp": now + 600,
        } | claims
        payload = {name: value for name, value in payload.items() if value is not None}
        match algorithm:
            case "ES256":
                return jwt.encode(payload, self.ec_key, "ES256", headers={"kid": "ec-1"})
            case "RS256":
                return jwt.encode(payload, self.rsa_key, "RS256", headers={"kid": "rsa-1"})
            case "HS256":
                return jwt.encode(payload, SECRET, "HS256", headers={"kid": "ec-1"})
            case _:
                return jwt.encode(payload, "", "none", headers={"kid": "ec-1"})

    def token_signed_with_the_public_key(self, user_id: str = "user-1") -> str:
        """Sign with HS256, and as its secret the text of the public key."""
        pem = self.ec_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        honest = jwt.decode(self.token(user_id), options={"verify_signature": False})
        header = {"alg": "HS256", "typ": "JWT", "kid": "ec-1"}
        return _signed_by_hand(header, honest, pem)

    def jwks(self) -> dict[str, Any]:
        """What `/auth/v1/.well-known/jwks.json` shows."""
        keys = {
            "ec-1": jwt.get_algorithm_by_name("ES256").to_jwk(
                self.ec_key.public_key(), as_dict=True
            ),
            "rsa-1": jwt.get_algorithm_by_name("RS256").to_jwk(
                self.rsa_key.public_key(), as_dict=True
            ),
        }
        algorithms = {"ec-1": "ES256", "rsa-1": "RS256"}
        return {
            "keys": [
                keys[kid] | {"kid": kid, "alg": algorithms[kid], "use": "sig"}
                for kid in self.published
            ]
        }

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Answer on a free loopback port."""

        async def answer(request: web.Request) -> web.StreamResponse:
            self.requests += 1
            if self.is_away:
                return web.Response(status=503)
            if self.piece_bytes is None:
                return web.json_response(self.jwks())
            return await self._send_pieces(request, self.piece_bytes)

        app = web.Application()
        app.router.add_get("/auth/v1/.well-known/jwks.json", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _send_pieces(self, request: web.Request, piece_bytes: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        body = json.dumps(self.jwks()).encode() + b" " * self.padding_bytes
        for start in range(0, len(body), piece_bytes):
            await response.write(body[start : start + piece_bytes])
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response


def _signed_by_hand(header: dict[str, Any], payload: dict[str, Any], secret: bytes) -> str:
    # PyJWT itself refuses to sign with what looks like a public key.
    import base64
    import hashlib
    import hmac

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(payload).encode())}"
    return f"{signed}.{encode(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
