import pytest

from resnet_bench.base.describe_error import describe_error

REFUSED = (
    "API request to http://127.0.0.1:5000/api/2.0/mlflow/runs/create failed with exception HTTPConnectionPool("
    "host='127.0.0.1', port=5000): Max retries exceeded with url: /api/2.0/mlflow/runs/create (Caused by "
    "NewConnectionError(\"HTTPConnection(host='127.0.0.1', port=5000): Failed to establish a new connection: "
    '[Errno 111] Connection refused"))'
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  only\n"), "only"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "x.toml"), "x.toml: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("\x1b[31mred\x1b[0m and \x07loud"), "red and loud"),
        (RuntimeError("x" * 400), "x" * 299 + "…"),
        (ConnectionError(REFUSED), "127.0.0.1:5000 does not answer (connection refused)"),
        (
            ConnectionError("HTTPSConnectionPool(host='h', port=443): Read timed out. (read timeout=5)"),
            "h:443 does not answer (it timed out)",
        ),
        (RuntimeError("cannot open postgresql://a:pw@h/db"), "cannot open postgresql://a:***@h/db"),
    ],
)
def test_an_error_is_one_plain_line(error: Exception, sentence: str) -> None:
    assert describe_error(error) == sentence


def test_secrets_of_a_known_address_are_left_out() -> None:
    assert describe_error(RuntimeError("login with topsecret"), "http://ann:topsecret@h") == "login with ***"
