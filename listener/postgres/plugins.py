"""The two output plugins, each with its decoder and its options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cdc_tasks.routing.enqueued import MESSAGE_PREFIX
from cdc_tasks.routing.router import Route, RouteIndex
from listener.postgres.client.connection import Connection
from listener.postgres.client.type_catalogue import TypeCatalogue
from listener.postgres.codec.decoder import Decoder, DecoderOptions
from listener.postgres.codec.pgoutput import PgOutputDecoder
from listener.postgres.tables.catalogue import TableName, is_system
from listener.postgres.wal2json import decoder as wal2json
from listener.postgres.wal2json.definitions import TableDefinitions

__all__ = ["SENDS_MESSAGES", "Plugin", "PluginName", "open_plugin"]

SENDS_MESSAGES: Final = 14_00_00  # the first server whose pgoutput has the option

PluginName = Literal["pgoutput", "wal2json"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """What one replication connection needs from a plugin."""

    decoder: Decoder
    options: tuple[dict[str, str], ...]  # for START_REPLICATION: the first that the server accepts
    close: Callable[[], None]
    has_messages: bool = True  # the server sends logical messages
    lacks_when_old: str = ""  # what is missing if the server does not accept the first options


def open_plugin(
    name: PluginName,
    connect: Callable[[], Connection],
    *,
    publication: str,
    routes: Sequence[Route],
    slot: str,
    notes: str | None,
    source: str,
    codec: str,
    server_version: int,
    announced: Callable[[int, TableName], None] | None = None,
    prefixes: Collection[str] = (MESSAGE_PREFIX,),
    is_visible: Callable[[int], bool],
) -> Plugin:
    """Return the plugin, ready for one connection.

    `connect` opens an ordinary session for the catalogue; `notes` are the decoder's notes of an earlier run;
    `codec` is Python's name for the encoding of the log's text; `server_version` is psycopg2's number. `announced` is
    called with the OID and the name of a table before its changes come, if the plugin sends them. `prefixes` are those
    of the logical messages that are for us. `is_visible` returns whether sessions see a transaction, by its xid.
    """
    types = TypeCatalogue(connect)
    resolve_type = types.resolve
    shared: DecoderOptions = {
        "keeps_muted": any(route.even_muted for route in routes),
        "prefixes": prefixes,
        "is_visible": is_visible,
    }
    if name == "pgoutput":
        quoted = '"' + publication.replace('"', '""') + '"'
        options = {"proto_version": "1", "publication_names": quoted}
        if server_version >= SENDS_MESSAGES:
            options["messages"] = "true"
        decoder: Decoder = PgOutputDecoder(
            resolve_type, source=source, codec=codec, announced=announced, **shared
        )
        return Plugin(decoder, (options,), types.close, has_messages="messages" in options)
    index = RouteIndex(routes)

    def watches(schema: str, table: str) -> bool:
        return not is_system(schema) and bool(index.watching(schema, table))

    definitions = TableDefinitions(connect, slot, watches, notes=notes)
    definitions.refresh_all()
    decoder = wal2json.Wal2JsonDecoder(
        resolve_type, definitions, watches, source=source, codec=codec, **shared
    )
    options = wal2json.OPTIONS | {"add-msg-prefixes": ",".join(prefixes)}  # other messages are not sent
    candidates = (options | wal2json.NUMBERS_AS_STRINGS, options)
    lacks = "NaN and Infinity, which come as null; wal2json 2.6 has them, and so has CDC_PLUGIN=pgoutput"

    def close() -> None:
        definitions.close()
        types.close()

    return Plugin(decoder, candidates, close, lacks_when_old=lacks)
