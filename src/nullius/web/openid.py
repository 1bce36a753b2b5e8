"""OpenID Connect: what a provider says of itself, and whether an ID token is its own, for us, and for this very sign-in.

The checks are those of OpenID Connect Core 1.0, section 3.1.3.7, and of RFC 9207 (which provider answered). Keys are asked for anew when a token
names one that is not known, so that a provider may change them at any time.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError
from joserfc.jwk import KeySet

SECONDS = 10.0  # to wait for a provider
KEPT_SECONDS = 600.0  # what a provider said of itself, and its keys: one that it has withdrawn signs nothing after that
LEEWAY = 120  # seconds that its clock may be wrong
MOST_BYTES = 200_000  # of anything that it answers
ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)  # signed with a key of its own


class NotGenuine(Exception):
    """An answer that is not the provider's, not for us, or not for this sign-in; or no answer that can be used."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a provider. by_body: it takes the client's secret in the form (client_secret_post); says_who: its answers carry `iss`."""

    issuer: str
    authorize: str
    token: str
    userinfo: str
    jwks: str
    by_body: bool
    says_who: bool


_kept: dict[str, tuple[float, Endpoints]] = {}
_keys: dict[str, tuple[float, KeySet]] = {}


def forget() -> None:
    """Ask every provider anew."""
    _kept.clear()
    _keys.clear()


def discover(issuer: str) -> Endpoints:
    """Return what a provider publishes (OpenID Connect Discovery 1.0), asked for every ten minutes.

    Raises NotGenuine when it does not answer, names another issuer, or sends the reader somewhere that is not encrypted.
    """
    kept = _kept.get(issuer)
    if kept and kept[0] > time.monotonic():
        return kept[1]
    found = fetch(f"{issuer}/.well-known/openid-configuration")
    if str(found.get("issuer", "")).rstrip("/") != issuer:
        raise NotGenuine("it says that it is another provider")
    names = {"authorize": "authorization_endpoint", "token": "token_endpoint", "userinfo": "userinfo_endpoint", "jwks": "jwks_uri"}
    places = {ours: str(found.get(theirs)) for ours, theirs in names.items()}
    if not all(encrypted(place) for place in places.values()):
        raise NotGenuine("it does not name all its addresses, or one that is not https")
    ways = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    says_who = found.get("authorization_response_iss_parameter_supported") is True
    made = Endpoints(found["issuer"], **places, by_body="client_secret_post" in ways, says_who=says_who)
    _kept[issuer] = (time.monotonic() + KEPT_SECONDS, made)
    return made


def encrypted(address: str) -> bool:
    """Whether what is sent to an address is nobody else's to read: https, or a program on this machine."""
    return address.startswith(("https://", "http://127.0.0.1:"))


def fetch(address: str, token: str = "") -> dict[str, Any]:
    """Return the JSON object at an address. token: what lets us in there. Raises NotGenuine for anything else."""
    found = _read(address, token)
    if not isinstance(found, dict):
        raise NotGenuine("it answers with no JSON object")
    return found


def fetch_list(address: str, token: str) -> list[dict[str, Any]]:
    """Return the list of JSON objects at an address. Raises NotGenuine for anything else."""
    found = _read(address, token)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise NotGenuine("it answers with no list")
    return found


def _read(address: str, token: str) -> Any:
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        answer = httpx.get(address, headers=headers, timeout=SECONDS).raise_for_status()
        return answer.json() if len(answer.content) <= MOST_BYTES else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
        raise NotGenuine(type(error).__name__) from None


def answered_by(found: Endpoints, named: str) -> None:
    """Check that the answer that a browser brings back is of this provider (RFC 9207). Raises NotGenuine. named: its `iss`, '' for none."""
    if named != found.issuer and (named or found.says_who):
        raise NotGenuine("another provider answered")


def claims(found: Endpoints, token: Mapping[str, Any], client_id: str, nonce: str) -> dict[str, Any]:
    """Return the claims of the ID token in a token response, checked. Raises NotGenuine."""
    text = token.get("id_token")
    if not isinstance(text, str) or len(text) > MOST_BYTES:
        raise NotGenuine("it sent no ID token")
    try:
        try:
            decoded = jwt.decode(text, _keys_of(found.jwks), list(ALGORITHMS))
        except (InvalidKeyIdError, BadSignatureError):  # it may have a new key
            decoded = jwt.decode(text, _keys_of(found.jwks, fresh=True), list(ALGORITHMS))
        registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": found.issuer},
            aud={"essential": True, "value": client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )
        registry.validate(decoded.claims)
    except NotGenuine:
        raise
    except Exception as error:  # whatever stands in a forged token, and whatever the library makes of it
        raise NotGenuine(f"its ID token is refused: {type(error).__name__}") from None
    own = dict(decoded.claims)
    if (
        not own["sub"]
        or (isinstance(own["aud"], list) and len(own["aud"]) > 1 and "azp" not in own)
        or own.get("azp", client_id) != client_id
    ):
        raise NotGenuine("its ID token is for somebody else")
    if not isinstance(own.get("nonce"), str) or not secrets.compare_digest(own["nonce"].encode(), nonce.encode()):
        raise NotGenuine("its ID token is of another sign-in")
    if "at_hash" in own and own["at_hash"] != _half(str(token.get("access_token", "")), str(decoded.header.get("alg"))):
        raise NotGenuine("its ID token belongs to another access token")
    return own


def _keys_of(address: str, fresh: bool = False) -> KeySet:
    kept = _keys.get(address)
    if fresh or kept is None or kept[0] < time.monotonic():
        kept = (time.monotonic() + KEPT_SECONDS, KeySet.import_key_set(fetch(address)))  # type: ignore[arg-type]  # what is none raises, and is refused
        _keys[address] = kept
    return kept[1]


def _half(text: str, algorithm: str) -> str:
    """The left half of a hash, in base64url: how an ID token names its access token (section 3.1.3.6)."""
    name = {"384": "sha384", "512": "sha512"}.get(algorithm[-3:], "sha512" if algorithm.startswith("Ed") else "sha256")
    made = hashlib.new(name, text.encode("utf-8", "replace")).digest()
    return base64.urlsafe_b64encode(made[: len(made) // 2]).rstrip(b"=").decode()
