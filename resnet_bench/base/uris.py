"""Addresses of stores: taken apart, compared, and printed without secrets."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

HIDDEN = "***"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}
"""The usual port of a database's or server's address."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_SECRET = re.compile(r"pass|pwd|token|secret|credential|(api|access|private|account)[_-]?key|signature|^sig$")
_FILES = ("sqlite", "file", "journal")
_PATHS = ("sqlite", "journal")
"""What stands behind these is a path, and an @ belongs to it. No store is a ``file:``: it is a server's, mistyped."""
_USERINFO = re.compile(
    # The path of a page may hold an @, and so may that of a file.
    r"\b(?!sqlite[a-z+]*:///)(https?://(?=[^\s/'\"<>]*@)|(?!https?:)[a-z][a-z0-9+.-]*://)([^\s'\"<>]*?)@(?![^\s/'\"<>]*@)",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"([\w%.-]+)(\s*=\s*|[\"']:\s*(?=[\"']))('[^']*'|\"[^\"]*\"|[^\s&;,)'\"]+)")
_QUERY = re.compile(r"([?&;])([\w%.-]+=[^\s&;'\"<>)]+)")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w+/=._~-]{6,}", re.IGNORECASE)


class Address(NamedTuple):
    """The parts of an address as database drivers read them: a password may hold slashes and other signs."""

    scheme: str
    """With the driver, in lower case, such as ``postgresql+psycopg``."""
    user: str
    password: str
    host: str
    port: int | None
    path: str
    """With its leading slash; of a file's address the path itself."""
    query: str

    @property
    def kind(self) -> str:
        """The scheme without the driver."""
        return self.scheme.partition("+")[0]


def parse(uri: str) -> Address:
    """Take an address apart; what is missing is empty. Nothing is decoded.

    Raises:
        ValueError: The port is not a number.
    """
    scheme, slashes, rest = uri.partition("://")
    if not slashes:
        scheme, colon, rest = uri.partition(":")
        return Address(scheme.lower() if colon else "", "", "", "", None, rest if colon else uri, "")
    scheme = scheme.lower()
    if scheme.partition("+")[0] in _FILES:
        path, _, query = rest.removeprefix("/").partition("?")
        return Address(scheme, "", "", "", None, path, query)
    before, _, place = rest.rpartition("@")
    user, _, password = before.partition(":")
    place, _, query = place.partition("?")
    netloc, slash, path = place.partition("/")
    host, port = _host_and_port(netloc)
    return Address(scheme, user, password, host, port, f"{slash}{path}", query)


def redact(uri: str) -> str:
    """Write an address as it may be printed: passwords, tokens and a server's user become ``***``."""
    scheme, slashes, rest = uri.partition("://")
    if not slashes or (scheme.lower().partition("+")[0] in _PATHS and rest.startswith("/")):
        # A mistyped address may hold a password anywhere before its @; the path of a file may hold an @ too.
        before, at, after = uri.rpartition("@") if not slashes else ("", "", uri)
        return f"{HIDDEN if before else ''}{at}{_redacted_query(after)}"
    before, at, place = rest.rpartition("@")
    user, _, password = before.partition(":")
    if scheme.lower() in ("http", "https"):
        user = HIDDEN if at else ""
    elif password:
        user = f"{user}:{HIDDEN}"
    return f"{scheme}{slashes}{user}{at}{_redacted_query(place)}"


def redact_text(text: str, *uris: str) -> str:
    """Take the secrets out of a text, such as the error of a driver, that may repeat an address.

    Args:
        text: The text; addresses, ``password=…`` and the like in it are found.
        uris: Addresses whose secrets are replaced wherever and however they are spelled.
    """
    for secret in sorted({spelling for uri in uris for spelling in _secrets(uri)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _QUERY.sub(lambda found: f"{found[1]}{_redacted_part(found[2])}", text)
    text = _USERINFO.sub(_redacted_userinfo, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _ASSIGNMENT.sub(lambda found: _redacted_assignment(*found.groups()), text)


def same_place(left: str, right: str) -> bool:
    """Tell whether two addresses lead to one database, whatever the driver, the user or the spelling of a path."""
    ours, theirs = _identity(left), _identity(right)
    return ours is not None and ours == theirs


def sqlite_path(uri: str) -> Path | None:
    """Find the file of a SQLite address, absolute; None for others, and for a database in memory."""
    if kind_of(uri) != "sqlite" or ":///" not in uri:
        return None
    path = uri.partition(":///")[2]
    return None if path in ("", "/") or ":memory:" in path else Path(path).absolute()


def kind_of(uri: str) -> str:
    """The kind of an address in lower case, without its driver."""
    return uri.partition(":")[0].partition("+")[0].lower() if ":" in uri else ""


def is_loopback(uri: str) -> bool:
    """Tell whether an address leads to this machine."""
    try:
        host = parse(uri).host
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_and_port(netloc: str) -> tuple[str, int | None]:
    if netloc.startswith("["):
        host, _, rest = netloc[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = netloc.partition(":")
    return host.lower(), int(port) if port else None


def _redacted_query(place: str) -> str:
    path, mark, rest = place.partition("?")
    if not mark:
        path, mark, rest = place.partition("#")
    parts = re.split(r"([&;#])", rest)
    return f"{path}{mark}{''.join(_redacted_part(part) for part in parts)}"


def _redacted_part(part: str) -> str:
    name, is_, value = part.partition("=")
    return f"{name}{is_}{HIDDEN}" if value and _is_secret(name, value) else part


def _is_secret(name: str, value: str) -> bool:
    # Some drivers take a whole connection string as the value of one key.
    nested = re.split(r"[=\s;]", _decoded(value))[:-1]
    return any(_SECRET.search(_decoded(word).lower()) for word in (name, *nested))


def _decoded(text: str) -> str:
    for _ in range(3):
        text, before = unquote(text), text
        if text == before:
            break
    return text


def _redacted_userinfo(found: "re.Match[str]") -> str:
    return redact(f"{found[1]}{found[2]}@")


def _redacted_assignment(name: str, sign: str, value: str) -> str:
    if not _SECRET.search(_decoded(name).lower()):
        return f"{name}{sign}{value}"
    quote_sign = value[0] if value[0] in "'\"" else ""
    return f"{name}{sign}{quote_sign}{HIDDEN}{quote_sign}"


def _secrets(uri: str) -> Iterator[str]:
    """Every spelling in which a driver may repeat a secret of the address."""
    scheme, _, rest = uri.partition("://")
    before, _, place = rest.rpartition("@")
    user, _, password = before.partition(":")
    values = [password or (user if scheme.lower() in ("http", "https") else "")]
    if scheme.lower().partition("+")[0] in _PATHS and rest.startswith("/"):
        values = []
    parts = re.split(r"[?&;#]", place)[1:]
    parts += [nested for part in parts for nested in re.split(r"[;\s]", _decoded(part.partition("=")[2]))]
    values += [value for name, _, value in (part.partition("=") for part in parts) if _is_secret(name, value)]
    for value in filter(None, values):
        spellings = {value, unquote(value), _decoded(value)}
        yield from spellings | {quote(spelling, safe="") for spelling in spellings}


def _identity(uri: str) -> tuple[object, ...] | None:
    kind = kind_of(uri)
    if kind == "sqlite":
        path = sqlite_path(uri)
        return None if path is None else (kind, path.resolve())
    if kind == "postgres":
        kind = "postgresql"
    try:
        parts = parse(uri)
    except ValueError:
        return None
    if kind not in PORTS:
        return None
    query = dict(parse_qsl(parts.query))
    host = parts.host or query.get("host", "localhost")
    port = parts.port or query.get("port") or PORTS[kind]
    name = parts.path.strip("/") or query.get("dbname", "")
    return kind, "localhost" if host in LOOPBACK else host, int(port), unquote(name)
