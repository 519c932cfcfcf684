"""The values of secrets for one call, checked against the hosts that they are bound to."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Dialect, Table, bindparam, select
from sqlalchemy.sql import ClauseElement

from app.core.database import Database
from app.core.database.statements import PreparedStatement, Statement
from app.core.database.transactions import TransactionScript
from app.core.hosts import is_bound_to
from app.core.value_objects import value_object
from app.models import StoredSecret
from app.services.tools.errors import SecretHostMismatch, SecretNotFound
from app.services.tools.key_ring import KeyRing
from app.services.tools.secrets import SIGNING_PREFIX

_secrets = cast("Table", StoredSecret.__table__)
_MOST_SIGNING_KEYS = 1000
SecretRow = tuple[str, bytes, Sequence[str]]
"""Name, sealed value, hosts."""


@value_object(frozen=True, slots=True)
class CallSecrets:
    """What one call of a tool needs; not to be kept longer."""

    signing_key: bytes = field(repr=False)
    values: Mapping[str, str] = field(repr=False)
    """By the names in the tool's templates."""


class SecretStore:
    """Reads secrets at each call, so that a deleted one is not used again.

    The key that signs a tool's requests never changes, so it is read once.
    """

    def __init__(self, database: Database, keys: KeyRing) -> None:
        self._database = database
        self._keys = keys
        self._signing_keys: OrderedDict[tuple[UUID, UUID], bytes] = OrderedDict()

    async def for_call(
        self, workspace_id: UUID, tool_id: UUID, names: Sequence[str], url: str
    ) -> CallSecrets:
        """Return the tool's signing key and the values of `names`, which go to `url`.

        Raises `SecretNotFound`, `SecretHostMismatch`, `SecretsKeyMissing`, `SealBroken` and
        `StorageUnavailable`.
        """
        signing_key = self._signing_keys.get((workspace_id, tool_id))
        if signing_key is not None:
            return CallSecrets(signing_key, await self.values(workspace_id, names, url))
        signing_name = f"{SIGNING_PREFIX}{tool_id}"
        rows = await self._database.run(_load, workspace_id, (signing_name, *names))
        opened = self.opened(workspace_id, (signing_name, *names), url, rows)
        signing_key = self._signing_keys[workspace_id, tool_id] = opened.pop(signing_name)
        if len(self._signing_keys) > _MOST_SIGNING_KEYS:
            self._signing_keys.popitem(last=False)
        return CallSecrets(signing_key, {name: value.decode() for name, value in opened.items()})

    async def values(self, workspace_id: UUID, names: Sequence[str], url: str) -> dict[str, str]:
        """Return the values of `names`, which go to `url`. Raises as `for_call` does."""
        if not names:
            return {}
        rows = await self._database.run(_load, workspace_id, names)
        opened = self.opened(workspace_id, names, url, rows)
        return {name: value.decode() for name, value in opened.items()}

    async def value_and_hosts(
        self, workspace_id: UUID, name: str, url: str
    ) -> tuple[str, Sequence[str]]:
        """Return a secret that goes to `url`, and its hosts. Raises as `for_call` does."""
        rows = await self._database.run(_load, workspace_id, [name])
        value = self.opened(workspace_id, [name], url, rows)[name]
        return value.decode(), rows[0][2]

    def opened(
        self, workspace_id: UUID, names: Sequence[str], url: str, rows: Sequence[SecretRow]
    ) -> dict[str, bytes]:
        """Return the values of rows that were loaded. Raises as `for_call` does."""
        stored = {name: (sealed, hosts) for name, sealed, hosts in rows}
        sealer = self._keys.sealer()
        opened: dict[str, bytes] = {}
        for name in names:
            if name not in stored:
                raise SecretNotFound(f"The secret {name.partition('/')[0]} does not exist.")
            sealed, hosts = stored[name]
            if not name.startswith(SIGNING_PREFIX) and not is_bound_to(hosts, url):
                raise SecretHostMismatch(f"The secret {name} may not be sent to this host.")
            opened[name] = sealer.open(sealed, workspace_id, name)
        return opened


def _load(workspace_id: UUID, names: Sequence[str]) -> TransactionScript[list[SecretRow]]:
    found = yield [load_secret(workspace_id, name) for name in names]
    return [cast("SecretRow", row) for rows in found for row in rows]


def load_secret(workspace_id: UUID, name: str) -> Statement:
    """Return the statement that loads a `SecretRow`, if there is one."""
    return _SECRET(workspace_id_=workspace_id, name_=name)


def _secret_stmt(_dialect: Dialect) -> ClauseElement:
    columns: Any = (_secrets.c.name, _secrets.c.sealed, _secrets.c.hosts)
    return select(*columns).where(
        _secrets.c.workspace_id == bindparam("workspace_id_"), _secrets.c.name == bindparam("name_")
    )


_SECRET = PreparedStatement(_secret_stmt)
