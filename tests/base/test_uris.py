from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_bench.base.uris import is_loopback, redact, redact_text, same_place, sqlite_path

SECRET = "s3cr3t"

WITH_SECRETS = [
    f"postgresql://ann:{SECRET}@host:5432/db",
    f"postgresql+psycopg://ann:pa/ss?{SECRET}@host/db",
    f"postgresql://ann@host/db?password={SECRET}&sslmode=require",
    f"postgresql://ann@host/db?sslmode=require&sslpassword={SECRET}",
    f"postgresql://ann@host/db?pass%77ord={SECRET}",
    f"mssql://host/db?odbc_connect=DRIVER%3DODBC%3BPWD%3D{SECRET}",
    f"https://ann:{SECRET}@tracking.example.org/mlflow",
    f"https://{SECRET}@tracking.example.org",
    f"https://tracking.example.org/mlflow?api_key={SECRET}",
    f"https://tracking.example.org/mlflow?access_tok%65n={SECRET}#x",
    f"https://tracking.example.org/#token={SECRET}",
    f"postgres:ann:{SECRET}@host",
    f"sqlite://ann:{SECRET}@host/db",
    f"file:///ann:{SECRET}@host/db",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_no_secret_is_printed(uri: str) -> None:
    assert SECRET not in redact(uri)
    assert "***" in redact(uri)


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_no_secret_of_a_known_address_survives_in_an_error(uri: str) -> None:
    error = f"(OperationalError) connection to {uri} failed; user 'ann', {SECRET}"
    if "://" in uri and "pa/ss" not in uri:
        assert SECRET not in redact_text(error, uri)


@pytest.mark.parametrize(
    "text",
    [
        *(f"could not connect to '{uri}': refused" for uri in WITH_SECRETS if "://" in uri),
        f"FATAL: password={SECRET} host=db",
        f"connection string password='{SECRET} of two words' is invalid",
        f'{{"user": "ann", "password": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}abc",
    ],
)
def test_no_secret_of_an_unknown_address_survives_in_an_error(text: str) -> None:
    assert SECRET not in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ann@host:1/db?sslmode=require",
        "sqlite:////home/ann@work/mlflow.db",
        "file:///home/ann@work/mlruns",
        "http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning",
        "the source is [an article](https://medium.example/@ann/resnet-9)",
        "unexpected token: x",
        'FATAL:  password authentication failed for user "ann"',
    ],
)
def test_what_is_no_secret_is_printed(text: str) -> None:
    assert redact_text(text) == text


def test_a_servers_user_may_be_a_token_and_is_hidden() -> None:
    assert redact("https://ann:x@host/mlflow") == "https://***@host/mlflow"
    assert redact("postgresql://ann:x@host/db") == "postgresql://ann:***@host/db"


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters=" @'\"<>"), min_size=6))
def test_a_password_of_any_signs_is_hidden_in_every_spelling(password: str) -> None:
    uri = f"postgresql://ann:{password}@host/db"
    assert redact(uri) == "postgresql://ann:***@host/db"
    for spelling in (password, quote(password, safe="")):
        assert redact_text(f"[{spelling}]", uri) == "[***]"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("postgresql+psycopg://ann@localhost/x", "postgresql://bob:pw@127.0.0.1:5432/x", True),
        ("postgresql://host/x", "postgresql://host:5433/x", False),
        ("postgresql:///x?host=db", "postgresql://DB/x", True),
        ("sqlite:///a.db", "sqlite:///./a.db", True),
        ("sqlite:///a.db", "sqlite:///b.db", False),
        ("sqlite:///a.db", "journal:a.db", False),
        ("grpc://host", "grpc://host", False),
    ],
)
def test_two_addresses_of_one_database_are_the_same(left: str, right: str, same: bool) -> None:
    assert same_place(left, right) is same


def test_links_and_dots_lead_to_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert same_place(f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/link/../{tmp_path.name}/a.db")


def test_sqlite_path_is_absolute_and_missing_for_what_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert sqlite_path("sqlite:///a.db") == Path("/a.db")
    assert sqlite_path("sqlite:////x/a.db") == Path("/x/a.db")
    for uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql:///a.db", "http://host"):
        assert sqlite_path(uri) is None


def test_loopback_is_this_machine_only() -> None:
    assert all(is_loopback(f"http://{host}:5000") for host in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]"))
    assert not any(is_loopback(f"http://{host}") for host in ("host", "127.evil.example", "10.0.0.1", "h:x"))
