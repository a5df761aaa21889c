"""`chatkeep list`, `show`, `search` and `delete`: an owner's conversations."""

from typing import Annotated, Any

import typer
from rich.text import Text

from chatkeep.cli.calls import calls_of
from chatkeep.cli.ids import HELP, conversation_of, project_of
from chatkeep.cli.options import DatabaseUrl, Owner, open_existing, store_url
from chatkeep.cli.owners import who_there_is
from chatkeep.cli.tables import AsJson, print_json, print_table
from chatkeep.cli.terminal import confirm, escaped, local_time, note, one_line, out, run, say
from chatkeep.model import Conversation, Message, Page, SearchHit
from chatkeep.settings import LOCAL_OWNER
from chatkeep.store import MAX_LIMIT
from chatkeep.urls import without_secrets

UNTITLED = "(no title)"

ConversationId = Annotated[str, typer.Argument(help=f"The conversation's id, as `list` shows it, {HELP}.")]


def list_(
    database_url: DatabaseUrl = None,
    context: Annotated[str | None, typer.Option(help="Only conversations of this context.")] = None,
    project: Annotated[
        str | None, typer.Option(help=f"Only conversations of the project with this name or id, {HELP}.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only conversations with this label; '!archived' leaves out. Repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Most conversations to list.")] = 20,
    owner: Owner = LOCAL_OWNER,
    as_json: AsJson = False,
) -> None:
    """List an owner's conversations, most recently updated first.

    In a pipe: id, time, number of messages and title, with tabs between them, and nothing is cut.
    """
    filters = {"context_id": context, "labels": tuple(label or ())}
    run(_list(store_url(database_url), owner, limit, project, filters, as_json=as_json))


async def _list(
    url: str, owner: str, limit: int, project: str | None, filters: dict[str, Any], *, as_json: bool
) -> None:
    async with open_existing(url) as store:
        project_id = None if project is None else await project_of(store, owner, project)
        page = await store.list_conversations(owner, limit=limit, total=True, project_id=project_id, **filters)
        others = "" if page.items else await who_there_is(store, owner)
    if as_json:
        print_json(*page.items)
    elif page.items:
        rows = [(str(each.id), each.updated_at, each.last_seq, each.title or UNTITLED) for each in page.items]
        print_table(("ID", "UPDATED", "MSGS", "TITLE"), rows, cut_last=True)
    if not page.items:
        such = "such conversation" if project or any(filters.values()) else "conversation"
        note(f"{owner} has no {such} in {without_secrets(url)}{others}")
    elif page.total and page.total > len(page.items):
        note(f"{len(page.items):,} of {page.total:,}; {_more(limit)}", "dim")


def _more(limit: int) -> str:
    """How to see what is beyond a limit."""
    return "--limit shows more" if limit < MAX_LIMIT else "`chatkeep export` has all"


class Shown(Conversation):
    """A conversation with the newest messages of the path that ends with its head, as the HTTP API has it."""

    messages: Page[Message]


def show(
    conversation_id: ConversationId,
    database_url: DatabaseUrl = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Number of messages, counted from the newest.")] = 50,
    owner: Owner = LOCAL_OWNER,
    as_json: AsJson = False,
) -> None:
    """Show a conversation: the messages on the path to its head, with their tool calls."""
    run(_show(store_url(database_url), owner, conversation_id, limit, as_json=as_json))


async def _show(url: str, owner: str, given: str, limit: int, *, as_json: bool) -> None:
    async with open_existing(url) as store:
        conversation = await conversation_of(store, owner, given)
        page = await store.history(owner, conversation.id, limit=limit, total=True)
    if as_json:
        print_json(Shown.model_construct(**dict(conversation), messages=page))
        return
    _print_head(conversation, page.total or 0)
    if page.next is not None:
        say(f"… there are earlier messages; {_more(limit)}", "dim")
    for message in page.items:
        _print_message(message)


def _print_head(conversation: Conversation, length: int) -> None:
    say(one_line(conversation.title or UNTITLED), "bold")
    others = conversation.last_seq - length
    more = f"; {others:,} more on other branches or deleted" if others else ""
    say(f"{length:,} messages, updated {local_time(conversation.updated_at)}{more}; id {conversation.id}", "dim")


def _print_message(message: Message) -> None:
    status = "" if message.status == "complete" else f" ({message.status})"
    colour = {"user": "cyan", "assistant": "green"}.get(message.role, "yellow")
    line = Text(f"\n{message.role}{status}", style=f"bold {colour}")
    line.append(f"  {local_time(message.sent_at or message.created_at)}", style="dim")
    say(line)
    if message.content:
        say(message.content)
    for call in calls_of(message):
        say(call, "yellow")


def search(
    words: Annotated[
        list[str], typer.Argument(help='Words, and "phrases" in quotes that the shell leaves: \'"green tea"\'.')
    ],
    database_url: DatabaseUrl = None,
    conversation: Annotated[str | None, typer.Option(help=f"Only in the conversation with this id, {HELP}.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Most messages to show.")] = 20,
    owner: Owner = LOCAL_OWNER,
    as_json: AsJson = False,
) -> None:
    """Search an owner's messages for all of these words, the newest first.

    Whole words, whatever their case and accents; 'tea -mint', in quotes, leaves out messages with mint. In a pipe:
    conversation, message, time, role, title and snippet, with tabs between them.
    """
    run(_search(store_url(database_url), owner, " ".join(words), conversation, limit, as_json=as_json))


async def _search(url: str, owner: str, query: str, given: str | None, limit: int, *, as_json: bool) -> None:
    async with open_existing(url) as store:
        within = None if given is None else (await conversation_of(store, owner, given)).id
        page = await store.search_messages(owner, query, conversation_id=within, limit=limit)
        others = "" if page.items else await who_there_is(store, owner)
    if as_json:
        print_json(*page.items)
    elif out.is_terminal:
        for hit in page.items:
            _print_hit(hit)
    else:
        print_table((), map(_row, page.items))
    if not page.items:
        note(f"no message of {owner} has all of these words{others}")
    elif page.next is not None:
        note(f"there are more; {_more(limit)}", "dim")


def _print_hit(hit: SearchHit) -> None:
    message = hit.message
    line = escaped(str(message.conversation_id), "yellow")
    line.append(f"  {local_time(message.sent_at or message.created_at)}  {message.role}  ", style="dim")
    line.append(one_line(hit.title or UNTITLED), style="bold")
    say(line)
    say(f"  {' '.join(hit.snippet.split())}")


def _row(hit: SearchHit) -> tuple[Any, ...]:
    message = hit.message
    ids = str(message.conversation_id), str(message.id)
    return *ids, message.sent_at or message.created_at, message.role, hit.title, " ".join(hit.snippet.split())


def delete(
    conversation_id: ConversationId,
    database_url: DatabaseUrl = None,
    owner: Owner = LOCAL_OWNER,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a conversation with all its messages. It cannot be undone."""
    url = store_url(database_url)
    found = run(_found(url, owner, conversation_id))
    named = f"{found.id} ({one_line(found.title or UNTITLED)}, {found.last_seq:,} messages)"
    if not yes:
        confirm(f"Delete {named} of {owner}?")
    run(_delete(url, owner, found))
    say(f"deleted {named}")


async def _found(url: str, owner: str, given: str) -> Conversation:
    async with open_existing(url) as store:
        return await conversation_of(store, owner, given)


async def _delete(url: str, owner: str, conversation: Conversation) -> None:
    async with open_existing(url) as store:
        await store.delete_conversation(owner, conversation.id)
