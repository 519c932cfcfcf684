"""Sealed values: bound to workspace and name, opened by every key, changed by nobody."""

import base64
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from app.core.errors import StartRefused
from app.core.sealed import Sealer
from app.core.sealed_errors import SealBroken, SecretsKeyMissing
from app.core.secrets_key import load_or_create_secrets_keys, parse_secrets_keys

OLD, NEW = b"o" * 32, b"n" * 32
WORKSPACE = uuid4()


def test_value_is_opened_for_the_same_workspace_and_name_alone() -> None:
    sealer = Sealer([OLD])
    sealed = sealer.seal(b"value", WORKSPACE, "NAME")

    assert sealer.open(sealed, WORKSPACE, "NAME") == b"value"
    for workspace, name in ((uuid4(), "NAME"), (WORKSPACE, "OTHER")):
        with pytest.raises(SealBroken):
            sealer.open(sealed, workspace, name)


def test_equal_values_are_sealed_differently_and_show_nothing() -> None:
    sealer = Sealer([OLD])
    first, second = (sealer.seal(b"the same value", WORKSPACE, "NAME") for _ in range(2))

    assert first != second
    assert first[9:21] != second[9:21]  # the nonces
    assert b"the same" not in first
    assert OLD.hex() not in first.hex()


def test_no_changed_byte_is_accepted() -> None:
    sealer = Sealer([OLD])
    sealed = sealer.seal(b"value", WORKSPACE, "NAME")

    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises((SealBroken, SecretsKeyMissing)):
            sealer.open(bytes(changed), WORKSPACE, "NAME")
    for length in range(len(sealed)):
        with pytest.raises((SealBroken, SecretsKeyMissing)):
            sealer.open(sealed[:length], WORKSPACE, "NAME")


def test_first_key_seals_and_every_key_opens() -> None:
    sealed = Sealer([OLD]).seal(b"value", WORKSPACE, "NAME")
    both = Sealer([NEW, OLD])

    assert both.open(sealed, WORKSPACE, "NAME") == b"value"
    again = both.seal(b"value", WORKSPACE, "NAME")
    assert Sealer([NEW]).open(again, WORKSPACE, "NAME") == b"value"
    with pytest.raises(SecretsKeyMissing):
        Sealer([NEW]).open(sealed, WORKSPACE, "NAME")


def test_keys_are_read_from_base64_separated_by_commas() -> None:
    text = " , ".join(base64.b64encode(key).decode() for key in (OLD, NEW))

    assert parse_secrets_keys(text) == (OLD, NEW)
    assert parse_secrets_keys(" ") == ()


@pytest.mark.parametrize("text", ["secret-word", "c2hvcnQ=", "é" * 44, "=" * 44])
def test_wrong_key_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64") as caught:
        parse_secrets_keys(text)

    assert text not in str(caught.value)


def test_file_of_development_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    made = load_or_create_secrets_keys(path)

    assert load_or_create_secrets_keys(path) == made
    assert [len(key) for key in made] == [32]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_file_that_others_may_have_chosen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    load_or_create_secrets_keys(path)
    path.chmod(0o666)

    with pytest.raises(StartRefused, match=r"can be written by other accounts.*SECRETS_KEY"):
        load_or_create_secrets_keys(path)
