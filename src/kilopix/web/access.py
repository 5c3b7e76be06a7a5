"""Who may ask: the names that the server answers to, the origins of web pages, and the token.

One rule for origins stands for the page and the endpoint alike, in place of Gradio's own. A browser says in
`Origin` whose page sends a request: the server's own page may ask for everything, pages of the origins in
`Access.origins` may use the endpoint (without cookies), and every other is refused before anything is done.
Programs such as curl send no `Origin`.
"""

import hashlib
import hmac
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qs

from kilopix.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST_TOKEN = 8
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_TOKEN = re.compile(r"[\x21-\x7e]+")

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Access:
    """The rule of one server; `hosts` None answers to any name, `token` None lets in whoever can connect."""

    hosts: tuple[str, ...] | None = LOOPBACK
    origins: tuple[str, ...] = ()
    token: str | None = None

    def answers_to(self, headers: Mapping[str, str]) -> bool:
        """Whether the server goes by the name that the request calls it."""
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        return self.hosts is None or host in self.hosts

    def is_foreign(self, headers: Mapping[str, str]) -> bool:
        """Whether a web page sends this that is not the server's own."""
        origin = headers.get("origin")
        if origin is None:
            return False
        scheme, _, authority = origin.lower().partition("://")
        if scheme not in _DEFAULT_PORTS:  # "null" among them, which stands for a page without an origin
            return True
        # Whether a proxy adds TLS is not known here, so both schemes are the server's own.
        own = headers.get("host", "").lower().removesuffix(_DEFAULT_PORTS[scheme])
        return not own or authority.removesuffix(_DEFAULT_PORTS[scheme]) != own

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether the page that sends this may use the endpoint though it is not the server's own."""
        return headers.get("origin", "").lower() in self.origins

    def cors(self, headers: Mapping[str, str]) -> Headers:
        """What lets a browser hand an answer to such a page; never with credentials."""
        if not self.origins:
            return []
        told = [("vary", "Origin")]
        if self.allows(headers):
            told += [
                ("access-control-allow-origin", headers["origin"]),
                ("access-control-expose-headers", "Retry-After"),
            ]
        return told

    def preflight(self, headers: Mapping[str, str]) -> Headers:
        """What lets a browser send a request for such a page."""
        return [
            *self.cors(headers),
            ("access-control-allow-methods", "GET, POST"),
            ("access-control-allow-headers", "Authorization, Content-Type"),
            ("access-control-max-age", "600"),
        ]

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the token, as a program or as a browser that has logged in."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        name, value = self._cookie
        return any(key == name and _equal(found, value) for key, _, found in cookies)

    def is_token(self, given: str) -> bool:
        """Compare in a time that does not depend on how much is right."""
        return self.token is not None and _equal(given, self.token)

    @cached_property
    def _cookie(self) -> tuple[str, str]:
        """Name and value; of the token, so that servers at other ports, which share cookies, keep theirs."""
        assert self.token is not None
        name, value = (
            hmac.new(self.token.encode(), part, hashlib.sha256).hexdigest() for part in (b"name", b"value")
        )
        return f"kilopix-{name[:12]}", value

    def login(self, given: str, headers: Mapping[str, str]) -> tuple[int, Headers, str]:
        """Status, headers and page for a token from the address or from the form."""
        if not self.is_token(given):
            return 401, [], login_page("That is not this server's token." if given else "")
        name, value = self._cookie
        secure = "; Secure" * (headers.get("x-forwarded-proto") == "https")
        cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"
        return 200, [("set-cookie", cookie)], _ENTER


def _equal(a: str, b: str) -> bool:
    return hmac.compare_digest(*(hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (a, b)))


def token_in(query: str) -> str:
    """The token in the query of an address or in the body of a form; empty if there is none."""
    try:
        return parse_qs(query, max_num_fields=4).get("token", [""])[0]
    except ValueError:
        return ""


def checked_token(token: str) -> str:
    """A token that fits into a header and is not guessed at once."""
    if len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token):
        raise UserError(
            f"--token: must be at least {SHORTEST_TOKEN} letters, digits or signs of ASCII, without spaces; "
            "leave it out for one that is drawn."
        )
    return token


def checked_origin(origin: str) -> str:
    """An origin as browsers write it."""
    text = origin.lower()
    if not _ORIGIN.fullmatch(text):
        raise UserError(
            f"--allow-origin {origin}: must be the exact origin of a web page, such as https://example.org "
            "or http://localhost:3000, without a path."
        )
    return text.removesuffix(_DEFAULT_PORTS[text.partition("://")[0]])


_STYLE = (
    "<style>body{font:16px system-ui,sans-serif;max-width:26rem;margin:15vh auto;padding:0 1rem;"
    "color-scheme:light dark}input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;"
    "margin-top:.5rem}</style>"
)
_HEAD = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>kilopix</title>{_STYLE}'
# A page and not a redirect: after a link in a message, browsers keep a strict cookie back from a redirect.
# The address with the token is replaced in the browser's history.
_ENTER = f'{_HEAD}<script>location.replace("/")</script><p><a href="/">Go on to the page</a></p></html>'


def login_page(told: str = "") -> str:
    """The page that asks for the token."""
    fault = f'<p role="alert">{html.escape(told)}</p>' if told else ""
    return (
        f'{_HEAD}<meta name="viewport" content="width=device-width"><h1>kilopix</h1>'
        "<p>This server has a token: it was printed when the server started.</p>"
        f'{fault}<form method="post" action="/login"><label>Token <input name="token" type="password" '
        'autocomplete="current-password" required autofocus></label><button>Open</button></form></html>'
    )
