"""No secret passes through `redact`."""

import pytest

from splice.redact import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter22@db:5432/x", "postgresql://***@db:5432/x"),
        ("postgresql+psycopg2://me:hunter22@db/x", "postgresql+psycopg2://***@db/x"),
        ("see https://token@example.org/a and b", "see https://***@example.org/a and b"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("mail someone@example.org", "mail someone@example.org"),
        ("", ""),
    ],
)
def test_user_names_and_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "name",
    ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "OPENAI_API_KEY",
     "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS"],
)  # fmt: skip
def test_values_of_variables_with_telling_names_are_hidden(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("key=correct-horse;") == "key=***;"


def test_the_password_of_a_url_in_the_environment_is_hidden_alone_and_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:p%40ssw0rd@db/x")
    text = redact("authentication of p@ssw0rd failed (p%40ssw0rd)")
    assert text == "authentication of *** failed (***)"


def test_short_values_stay_so_that_text_stays_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "no")
    assert redact("no news") == "no news"


def test_the_longer_of_two_secrets_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    monkeypatch.setenv("B_TOKEN", "secret-and-more")
    assert redact("secret-and-more") == "***"
