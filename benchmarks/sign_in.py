"""Sign in through a browser with a real OpenID Connect provider, and with its faults.

    PROVIDER=$(mktemp -d)
    npm install --prefix $PROVIDER oidc-provider@9.13.3
    python benchmarks/sign_in.py $PROVIDER

The provider is node-oidc-provider, certified by the OpenID Foundation, on loopback; the browser is an installed Chromium under Playwright; the
server is `nullius web --shared` behind a proxy that ends TLS. Each line says what was tried and what came of it; where one is wrong, the exit code
is 1.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey, RSAKey
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright

HOST = "papers.example.org"
BASE = f"https://{HOST}"
SECRET = "a+b%2F=&: ~" + "x" * 24  # what an encoding that was forgotten would spoil
SECONDS = 60.0
CHROMIUM = os.environ.get("NULLIUS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def certificate(folder: Path) -> ssl.SSLContext:
    """Return what a proxy needs to be HOST."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "host.pem").write_bytes(text + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem")
    return context


def proxy(port: int, behind: int, context: ssl.SSLContext) -> None:
    """End TLS at a port and hand everything on, for good."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(pass_on(reader, outer), pass_on(inner, writer))

    async def main() -> None:
        async with await asyncio.start_server(taken, "127.0.0.1", port, ssl=context) as server:
            await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > end:
            sys.exit(f"{what} took more than {SECONDS:.0f} s")
        time.sleep(0.1)


def answers(address: str) -> bool:
    """Whether somebody is there."""
    try:
        httpx.get(address, timeout=5)
    except httpx.HTTPError:
        return False
    return True


class Lab:
    """The provider, our server, and the proxy before it."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self.packages, self.folder = packages, folder
        self.at, self.behind, self.front = free_port(), free_port(), free_port()
        self.log = (folder / "log").open("wb")
        self.clients = [
            {"client_id": name, "client_secret": SECRET, "redirect_uris": [f"{BASE}/signin/lab/back"]} for name in ("nullius", "another")
        ]
        self.provider: subprocess.Popen[bytes] | None = None
        self.keys([RSAKey.generate_key(2048, {"use": "sig"})])
        own = {"NULLIUS_DATA": str(folder / "data"), "NULLIUS_OIDC_LAB_ID": "nullius", "NULLIUS_OIDC_LAB_SECRET": SECRET}
        self.environment = {**os.environ, **own, "NULLIUS_OIDC_LAB_ISSUER": f"http://127.0.0.1:{self.at}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "nullius.cli.main", "web", "--shared", "--port", str(self.behind), "--base-url", BASE]
        command += ["--maintainer", "mia@example.org", "--no-browser", "--no-worker"]
        self.server = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)
        until(lambda: answers(f"http://127.0.0.1:{self.behind}/health"), "the server's start")
        proxy(self.front, self.behind, certificate(folder))

    def keys(self, keys: list[RSAKey | ECKey], **client: str) -> None:
        """Start the provider, anew where it runs, with keys of its own. client: what is registered of us besides."""
        if self.provider:
            self.provider.kill()
            self.provider.wait()
        for key in keys:
            key.ensure_kid()
        made = [{**key.as_dict(private=True)} for key in keys]
        ours = [{**one, **client} for one in self.clients]
        shutil.copy(Path(__file__).parent / "sign_in" / "provider.mjs", self.packages / "provider.mjs")
        command = ["node", "provider.mjs", str(self.at), json.dumps(made), json.dumps(ours)]
        self.provider = subprocess.Popen(command, cwd=self.packages, stdout=self.log, stderr=self.log)
        until(lambda: answers(f"http://127.0.0.1:{self.at}/fault/none"), "the provider's start")

    def switch(self, fault: str = "none", clock: int = 0) -> None:
        """Switch one of the provider's faults on, or set its clock wrong."""
        for path in (f"fault/{fault}", f"clock/{clock}"):
            httpx.get(f"http://127.0.0.1:{self.at}/{path}").raise_for_status()

    def stop(self) -> None:
        """End everything."""
        for process in (self.provider, self.server):
            if process:
                process.terminate()
                process.wait(30)


def sign_in(page: Page, user: str, cancel: bool = False) -> str:
    """Sign in as a user of the provider. Returns the text of the page where that ends."""

    def click(what: Locator) -> None:
        with page.expect_navigation(timeout=20_000):
            what.click()

    page.goto(f"{BASE}/signin")
    click(page.get_by_role("link", name="With the lab's account"))
    if cancel:
        click(page.get_by_text("Cancel"))
    if page.locator("input[name=login]").count():
        page.locator("input[name=login]").fill(user)
        page.locator("input[name=password]").fill("anything")
        click(page.get_by_role("button"))
    if not page.url.startswith(BASE):
        click(page.get_by_role("button", name="Continue"))  # yes, they may know who I am
    return page.inner_text("body")


def signed_in(context: BrowserContext) -> str:
    """Return the address of whoever is signed in, '' for nobody."""
    page = context.new_page()
    answer = page.goto(f"{BASE}/account.json")
    found = str(answer.json()["me"]["email"]) if answer and answer.ok else ""
    page.close()
    return found


def main() -> int:
    """Try everything, and say what came of it."""
    packages, wrong = Path(sys.argv[1]).resolve(), 0
    version = json.loads((packages / "node_modules/oidc-provider/package.json").read_text())["version"]
    folder = Path(tempfile.mkdtemp(prefix="nullius-sign-in-"))
    lab = Lab(packages, folder)
    with sync_playwright() as playwright:
        how = [f"--host-resolver-rules=MAP {HOST} 127.0.0.1:{lab.front}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=how)
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d} · Python {platform.python_version()}, node {node}, ", end="")
        print(f"oidc-provider {version}, Chromium {browser.version}\n")

        def told(what: str, right: bool, came: str) -> None:
            nonlocal wrong
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {what}: {' '.join(came.split())[:150]}", flush=True)

        def attempt(what: str, expected: str, said: str = "", user: str = "ada", cancel: bool = False) -> None:
            with browser.new_context(ignore_https_errors=True) as context:
                page = context.new_page()
                body = sign_in(page, user, cancel)
                who = signed_in(context)
                line = next((part for part in body.splitlines() if said and said in part), "")
                told(what, who == expected and bool(line) == bool(said), f"{who or 'nobody'} {line}")

        with browser.new_context(ignore_https_errors=True) as context:
            page = context.new_page()
            sign_in(page, "ada")
            cookies = {cookie["name"]: cookie for cookie in context.cookies(BASE)}
            told("the whole way, by clicks", signed_in(context) == "ada@example.org", signed_in(context))
            flags = cookies["__Host-nullius"]
            told("cookie", flags["httpOnly"] and flags["secure"] and flags["sameSite"] == "Lax", "HttpOnly, Secure, SameSite=Lax, __Host-")
            told("the cookie of the way there is gone", "__Host-nullius-signin" not in cookies, ", ".join(sorted(cookies)))
            back = page.goto(f"{BASE}/account")
            shown = page.inner_text("main")
            told("connected sign-ins", bool(back and back.ok) and "lab" in shown.lower(), "/account lists it")
            before = cookies["__Host-nullius"]["value"]
            sign_in(page, "ada")
            after = {cookie["name"]: cookie["value"] for cookie in context.cookies(BASE)}["__Host-nullius"]
            context.add_cookies([{"name": "__Host-nullius", "value": before, "url": BASE, "secure": True}])
            told(
                "a session is new at each sign-in, the old one ends", before != after and not signed_in(context), "401 with the old cookie"
            )

        attempt("again, in another browser", "ada@example.org")
        attempt("the reader says no", "", "did not let you in", cancel=True)
        attempt("an address that is not verified (a maintainer's)", "", "no verified e-mail address", user="uma")
        attempt("no address at all", "", "no verified e-mail address", user="nora")
        attempt("an address that would break a mail's head", "", "no verified e-mail address", user="mallory")
        for fault in ("audience", "nonce", "no nonce", "access token", "unsigned", "signature", "none sent", "another person"):
            lab.switch(fault)
            attempt(f"fault: {fault}", "", "could not say who you are")
        for clock, expected in ((60, "ada@example.org"), (-60, "ada@example.org"), (600, ""), (-7200, "")):
            lab.switch(clock=clock)
            attempt(f"its clock is {clock:+} s", expected, "" if expected else "could not say who you are")
        lab.keys([RSAKey.generate_key(2048, {"use": "sig"})])
        attempt("new keys, the old ones gone", "ada@example.org")
        lab.keys(
            [ECKey.generate_key("P-256", {"use": "sig"}), RSAKey.generate_key(2048, {"use": "sig"})], id_token_signed_response_alg="ES256"
        )
        attempt("ES256", "ada@example.org")
        lab.keys([RSAKey.generate_key(2048, {"use": "sig"})], id_token_signed_response_alg="HS256")
        attempt("HS256, signed with what both know", "", "could not say who you are")
        lab.keys([RSAKey.generate_key(2048, {"use": "sig"})], token_endpoint_auth_method="client_secret_post")
        attempt("secret in the form", "ada@example.org")
        lab.keys([RSAKey.generate_key(2048, {"use": "sig"})], client_secret="another" * 6)
        attempt("it knows another secret of ours", "", "could not say who you are")
        browser.close()
    lab.stop()
    written = (folder / "log").read_text(errors="replace")
    if SECRET in written or "Traceback" in written:
        print(f"WRONG the log: see {folder}")
        return 1
    shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
