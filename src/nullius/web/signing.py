"""Sign-in with an account elsewhere: Hugging Face, GitHub, or a lab's own OpenID Connect provider. Least scopes: who it is, and a verified address.

A provider is there when NULLIUS_OIDC_<NAME>_ID and NULLIUS_OIDC_<NAME>_SECRET are set (NAME: HUGGINGFACE, GITHUB, or LAB, which also needs
NULLIUS_OIDC_LAB_ISSUER). The way there and back is bound to the browser, and to who began it, by a signed cookie that holds the state, the nonce
and the PKCE verifier. GitHub speaks OAuth 2.0 only; the others' ID tokens are checked (`nullius.web.openid`).
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.responses import RedirectResponse, Response

from nullius.feed import tables
from nullius.feed.database import writing
from nullius.lab.journal import now
from nullius.lab.schema import insert_new
from nullius.web import mailing, openid, who
from nullius.web.problems import Problem
from nullius.web.settings import Settings
from nullius.web.site import Visit, get

MINUTES = 10  # that a sign-in may take
HUGGING_FACE = "https://huggingface.co"
GITHUB = openid.Endpoints(
    "",
    "https://github.com/login/oauth/authorize",
    "https://github.com/login/oauth/access_token",
    "https://api.github.com/user",
    "",
    True,
    False,
)
GITHUB_EMAILS = "https://api.github.com/user/emails"
_TITLES = {"huggingface": "Hugging Face", "github": "GitHub", "lab": "the lab's account"}


@dataclass(frozen=True)
class Provider:
    """A provider that is set up. places: its addresses; an OpenID Connect provider has an issuer among them."""

    name: str
    title: str
    places: openid.Endpoints
    scope: str
    client_id: str
    client_secret: str


def providers() -> list[dict[str, str]]:
    """Return name and title of the providers that are set up."""
    return [{"name": name, "title": title} for name, title in _TITLES.items() if os.environ.get(f"NULLIUS_OIDC_{name.upper()}_ID")]


def provider(name: str) -> Provider:
    """Return a provider that is set up. Raises Problem 404 for any other, and 503 for one that does not answer as it should."""
    if name not in {entry["name"] for entry in providers()}:
        raise Problem(404, "This sign-in is not set up here.", "", ("/signin", "Sign in"))
    beginning = f"NULLIUS_OIDC_{name.upper()}_"
    own = {"client_id": os.environ[f"{beginning}ID"], "client_secret": os.environ.get(f"{beginning}SECRET", ""), "title": _TITLES[name]}
    if name == "github":
        return Provider(name, places=GITHUB, scope="read:user user:email", **own)
    issuer = HUGGING_FACE if name == "huggingface" else os.environ.get(f"{beginning}ISSUER", "").rstrip("/")
    if not openid.encrypted(issuer):
        raise Problem(503, "NULLIUS_OIDC_LAB_ISSUER is no https address.", "Tell who runs this server.")
    try:
        return Provider(name, places=openid.discover(issuer), scope="openid profile email", **own)
    except openid.NotGenuine as error:
        raise Problem(
            503, f"The sign-in of {own['title']} does not answer as it should: {error}.", "Try again, or sign in by mail."
        ) from None


def _signer(settings: Settings) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(settings.secret, salt="nullius signing in")


def _cookie(settings: Settings) -> str:
    """The cookie that remembers a sign-in on its way. `__Host-`: no other site below the same domain can set one of its own in its place."""
    return "__Host-nullius-signin" if settings.secure else f"nullius-signin-{settings.port}"


def _client(chosen: Provider, settings: Settings) -> OAuth2Client:
    back = f"{settings.base_url}/signin/{chosen.name}/back"
    how = "client_secret_post" if chosen.places.by_body else "client_secret_basic"
    own = {"scope": chosen.scope, "redirect_uri": back, "timeout": openid.SECONDS, "token_endpoint_auth_method": how}
    return OAuth2Client(chosen.client_id, chosen.client_secret, **own)


@get("/signin/{provider}/go")
def go(visit: Visit) -> Response:
    """Leave for a provider."""
    _only_shared(visit)
    chosen = provider(visit.params["provider"])
    verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    how = {"code_challenge": create_s256_code_challenge(verifier), "code_challenge_method": "S256"}
    if chosen.places.issuer:
        how["nonce"] = nonce
    url, state = _client(chosen, visit.settings).create_authorization_url(chosen.places.authorize, **how)
    response = RedirectResponse(url, 303)
    own = {"state": state, "verifier": verifier, "nonce": nonce, "provider": chosen.name, "session": visit.person.session}
    kept = _signer(visit.settings).dumps(own)
    flags: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": visit.settings.secure, "path": "/"}
    response.set_cookie(_cookie(visit.settings), kept, max_age=60 * MINUTES, **flags)
    return response


@get("/signin/{provider}/back")
def back(visit: Visit) -> Response:
    """Come back from a provider: the code becomes tokens, they tell who it is, and are thrown away."""
    from nullius.web.pages.personal import signed_in

    _only_shared(visit)
    chosen = provider(visit.params["provider"])
    try:
        kept = _signer(visit.settings).loads(visit.request.cookies.get(_cookie(visit.settings), ""), max_age=60 * MINUTES)
    except BadSignature:
        kept = {}
    same = kept and kept["provider"] == chosen.name and kept["session"] == visit.person.session
    if not same or not secrets.compare_digest(kept["state"].encode(), visit.query("state").encode("utf-8", "replace")):
        raise Problem(403, "This sign-in was begun in another browser, or too long ago.", "Begin again.", ("/signin", "Sign in"))
    if not visit.query("code"):
        raise Problem(403, f"{chosen.title} did not let you in.", "", ("/signin", "Sign in"))
    external, name, email = _identity(chosen, visit, kept["verifier"], kept["nonce"])
    response = signed_in(visit, _account(chosen, external, name, email, visit))
    response.delete_cookie(_cookie(visit.settings), path="/", secure=visit.settings.secure, httponly=True, samesite="lax")
    return response


def _only_shared(visit: Visit) -> None:
    if not visit.settings.shared:
        raise Problem(404, "A local server has no accounts.")


def _identity(chosen: Provider, visit: Visit, verifier: str, nonce: str) -> tuple[str, str, str]:
    """Who it is: the provider's own id, a name, and a verified address ('' when there is none)."""
    places, own = chosen.places, {}
    try:
        if places.issuer:
            openid.answered_by(places, visit.query("iss"))
        with _client(chosen, visit.settings) as client:
            got = client.fetch_token(places.token, code=visit.query("code"), code_verifier=verifier, headers={"Accept": "application/json"})
        if places.issuer:
            own = openid.claims(places, got, chosen.client_id, nonce)
        user = openid.fetch(places.userinfo, got["access_token"])
        if own and user.get("sub") != own["sub"]:
            raise openid.NotGenuine("it speaks of two people")
        user = {**own, **user}
        email = user.get("email") if user.get("email_verified") in (True, "true") else ""
        if places is GITHUB:
            listed = openid.fetch_list(GITHUB_EMAILS, got["access_token"])
            email = next((entry["email"] for entry in listed if entry.get("primary") and entry.get("verified")), "")
    except openid.NotGenuine as error:
        raise Problem(503, f"{chosen.title} could not say who you are: {error}.", "Try again, or sign in by mail.") from None
    except Exception as error:  # the provider's fault, whatever it is: nothing of it may show
        raise Problem(
            503, f"{chosen.title} could not say who you are ({type(error).__name__}).", "Try again, or sign in by mail."
        ) from None
    external = str(user.get("sub") or user.get("id") or "")
    if not external:
        raise Problem(503, f"{chosen.title} did not say who you are.", "Sign in by mail.")
    name = str(user.get("preferred_username") or user.get("login") or user.get("name") or "")
    return external, name, str(email or "")


def _account(chosen: Provider, external: str, name: str, email: str, visit: Visit) -> str:
    """The account of a connected sign-in; connected now to whoever is signed in, or to the account with that verified address."""
    identity = tables.identity
    own = sa.and_(identity.c.provider == chosen.name, identity.c.external_id == external)
    with writing() as connection:
        found = connection.execute(sa.select(identity.c.account).where(own)).scalar()
    account = visit.person.account if visit.person.role != "visitor" else ""
    if found and account and found != account:
        raise Problem(
            409, f"Your sign-in with {chosen.title} is connected with another account here.", "Sign out first.", ("/account", "Account")
        )
    if found:
        return str(found)
    if not account:
        try:
            email = mailing.address(email)
        except Problem:
            raise Problem(
                403, "Your account there has no verified e-mail address.", "Sign in by mail, then connect it.", ("/signin", "Sign in")
            ) from None
        account = who.account_for(email, visit.settings, name)
    with writing() as connection:
        row = {"provider": chosen.name, "external_id": external, "account": account, "name": name[:200], "created": now()}
        insert_new(connection, identity, [row])  # the same sign-in in another tab may have been faster
        return str(connection.execute(sa.select(identity.c.account).where(own)).scalar_one())
