"""Sign-in with an account elsewhere: Hugging Face, GitHub, or a lab's own OpenID Connect provider. Least scopes: who it is, and a verified address.

A provider is there when NULLIUS_OIDC_<NAME>_ID and NULLIUS_OIDC_<NAME>_SECRET are set (NAME: HUGGINGFACE, GITHUB, or LAB, which also needs
NULLIUS_OIDC_LAB_ISSUER). The way there and back is bound to the browser by a signed cookie that holds the state and the PKCE verifier.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy as sa
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.responses import RedirectResponse, Response

from nullius.feed import tables
from nullius.feed.database import writing
from nullius.lab.journal import now
from nullius.lab.schema import insert_new
from nullius.web import who
from nullius.web.problems import Problem
from nullius.web.settings import Settings
from nullius.web.site import Visit, get

SECONDS = 10.0
COOKIE = "nullius-signin"


@dataclass(frozen=True)
class Provider:
    """Addresses of a provider. emails: where addresses are listed, for those that do not tell them with the user (GitHub)."""

    name: str
    title: str
    authorize: str
    token: str
    userinfo: str
    scope: str
    client_id: str
    client_secret: str
    emails: str = ""


def providers() -> list[dict[str, str]]:
    """Return name and title of the providers that are set up."""
    return [{"name": name, "title": title} for name, title in _TITLES.items() if os.environ.get(f"NULLIUS_OIDC_{name.upper()}_ID")]


_TITLES = {"huggingface": "Hugging Face", "github": "GitHub", "lab": "the lab's account"}


def provider(name: str) -> Provider:
    """Return a provider that is set up. Raises Problem 404 for any other."""
    if name not in {entry["name"] for entry in providers()}:
        raise Problem(404, "This sign-in is not set up here.", "", ("/signin", "Sign in"))
    beginning = f"NULLIUS_OIDC_{name.upper()}_"
    own = {"client_id": os.environ[f"{beginning}ID"], "client_secret": os.environ.get(f"{beginning}SECRET", ""), "title": _TITLES[name]}
    if name == "github":
        api, site = "https://api.github.com", "https://github.com/login/oauth"
        places = {
            "authorize": f"{site}/authorize",
            "token": f"{site}/access_token",
            "userinfo": f"{api}/user",
            "emails": f"{api}/user/emails",
        }
        return Provider(name, scope="read:user user:email", **places, **own)
    if name == "huggingface":
        base = "https://huggingface.co/oauth"
        places = {"authorize": f"{base}/authorize", "token": f"{base}/token", "userinfo": f"{base}/userinfo"}
        return Provider(name, scope="openid profile email", **places, **own)
    issuer = os.environ.get(f"{beginning}ISSUER", "").rstrip("/")
    if not issuer.startswith(("https://", "http://127.0.0.1:")):
        raise Problem(503, "NULLIUS_OIDC_LAB_ISSUER is no https address.", "Tell who runs this server.")
    try:
        found = httpx.get(f"{issuer}/.well-known/openid-configuration", timeout=SECONDS).raise_for_status().json()
        places = {"authorize": found["authorization_endpoint"], "token": found["token_endpoint"], "userinfo": found["userinfo_endpoint"]}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise Problem(503, f"The lab's sign-in does not answer ({type(error).__name__}).", "Try again, or sign in by mail.") from None
    return Provider(name, scope="openid profile email", **places, **own)


def _signer(settings: Settings) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(settings.secret, salt="nullius signing in")


def _client(chosen: Provider, settings: Settings) -> OAuth2Client:
    back = f"{settings.base_url}/signin/{chosen.name}/back"
    return OAuth2Client(chosen.client_id, chosen.client_secret, scope=chosen.scope, redirect_uri=back, timeout=SECONDS)


@get("/signin/{provider}/go")
def go(visit: Visit) -> Response:
    """Leave for a provider."""
    _only_shared(visit)
    chosen = provider(visit.params["provider"])
    verifier = secrets.token_urlsafe(48)
    how = {"code_challenge": create_s256_code_challenge(verifier), "code_challenge_method": "S256"}
    url, state = _client(chosen, visit.settings).create_authorization_url(chosen.authorize, **how)
    response = RedirectResponse(url, 303)
    kept = _signer(visit.settings).dumps({"state": state, "verifier": verifier, "provider": chosen.name})
    response.set_cookie(COOKIE, kept, max_age=600, httponly=True, samesite="lax", secure=visit.settings.secure, path="/signin")
    return response


@get("/signin/{provider}/back")
def back(visit: Visit) -> Response:
    """Come back from a provider: the code becomes a token, the token tells who it is, and is thrown away."""
    from nullius.web.pages.personal import signed_in

    _only_shared(visit)
    chosen = provider(visit.params["provider"])
    try:
        kept = _signer(visit.settings).loads(visit.request.cookies.get(COOKIE, ""), max_age=600)
    except BadSignature:
        kept = {}
    if not kept or kept["provider"] != chosen.name or not secrets.compare_digest(kept["state"], visit.query("state")):
        raise Problem(403, "This sign-in was begun in another browser, or too long ago.", "Begin again.", ("/signin", "Sign in"))
    if not visit.query("code"):
        raise Problem(403, f"{chosen.title} did not let you in.", "", ("/signin", "Sign in"))
    external, name, email = _identity(chosen, visit, kept["verifier"])
    account = _account(chosen.name, external, name, email, visit)
    response = signed_in(visit, account)
    response.delete_cookie(COOKIE, path="/signin")
    return response


def _only_shared(visit: Visit) -> None:
    if not visit.settings.shared:
        raise Problem(404, "A local server has no accounts.")


def _identity(chosen: Provider, visit: Visit, verifier: str) -> tuple[str, str, str]:
    """Who it is: the provider's own id, a name, and a verified address ('' when there is none)."""
    try:
        with _client(chosen, visit.settings) as client:
            client.fetch_token(chosen.token, code=visit.query("code"), code_verifier=verifier, headers={"Accept": "application/json"})
            user: dict[str, Any] = client.get(chosen.userinfo).raise_for_status().json()
            email = user.get("email") or "" if user.get("email_verified") else ""
            if chosen.emails:
                listed = client.get(chosen.emails).raise_for_status().json()
                email = next((entry["email"] for entry in listed if entry.get("primary") and entry.get("verified")), "")
    except Exception as error:  # the provider's fault, whatever it is: nothing of it may show
        raise Problem(
            503, f"{chosen.title} could not say who you are ({type(error).__name__}).", "Try again, or sign in by mail."
        ) from None
    external = str(user.get("sub") or user.get("id") or "")
    if not external:
        raise Problem(503, f"{chosen.title} did not say who you are.", "Sign in by mail.")
    return external, str(user.get("preferred_username") or user.get("login") or user.get("name") or ""), email


def _account(provider_name: str, external: str, name: str, email: str, visit: Visit) -> str:
    """The account of a connected sign-in; connected now to whoever is signed in, or to the account with that verified address."""
    identity = tables.identity
    own = sa.and_(identity.c.provider == provider_name, identity.c.external_id == external)
    with writing() as connection:
        found = connection.execute(sa.select(identity.c.account).where(own)).scalar()
    if found:
        return str(found)
    account = visit.person.account if visit.person.role != "visitor" else ""
    if not account:
        if not email:
            raise Problem(
                403, "Your account there has no verified e-mail address.", "Sign in by mail, then connect it.", ("/signin", "Sign in")
            )
        account = who.account_for(email, visit.settings, name)
    with writing() as connection:
        row = {"provider": provider_name, "external_id": external, "account": account, "name": name[:200], "created": now()}
        insert_new(connection, identity, [row])  # the same sign-in in another tab may have been faster
        return str(connection.execute(sa.select(identity.c.account).where(own)).scalar_one())
