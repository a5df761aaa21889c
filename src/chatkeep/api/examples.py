"""Example values of the OpenAPI document."""

from typing import Any

CONVERSATION_ID = "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75"
QUESTION_ID = "0190f0f0-8b4d-7d01-9a52-6f0f2b1c7d10"
ANSWER_ID = "0190f0f0-9c5e-7e12-8b63-7a1a3c2d8e21"

PROJECT_ID = "0190f0ee-5e2a-7aa0-8d91-4d0d0a9b6c53"
PROVIDER_ID = "0190f0ed-2b7c-7d10-9e44-5a1f3c8d0b62"
DOCUMENT_ID = "6f1de4b4-6d0c-5a3b-9e0f-2b6a4c1d7e88"

NEW_CONVERSATION = {"title": "Tea", "context_id": "kitchen", "labels": ["pinned"], "metadata": {"language": "en"}}
LATEST_CONVERSATION = {"context_id": "kitchen", "reuse_latest": True}
FOREIGN_CONVERSATION = {"external_id": "thread-17", "reuse_latest": True}
CONVERSATION_CHANGE = {"title": "Green tea", "metadata": {"language": None, "stars": 5}}
CONVERSATION: dict[str, Any] = {
    "id": CONVERSATION_ID,
    "owner_id": "local",
    "title": "Tea",
    "context_id": "kitchen",
    "project_id": None,
    "llm_provider_id": None,
    "external_id": None,
    "labels": ["pinned"],
    "metadata": {"language": "en"},
    "last_seq": 2,
    "head_id": ANSWER_ID,
    "created_at": "2026-01-31T12:00:00.000000Z",
    "updated_at": "2026-01-31T12:00:04.250000Z",
}

NEW_QUESTION = {"id": QUESTION_ID, "role": "user", "content": "How hot should the water be?"}
SOURCE = {
    "document_id": "0190f0ef-1111-7222-8333-444455556666",
    "file_path": "tea/green.md",
    "header_anchor": "temperature",
    "similarity_score": 0.83,
}
NEW_ANSWER = {
    "role": "assistant",
    "content": "About 80 °C for green tea.",
    "sources": [SOURCE],
    "model": "example-1",
    "input_tokens": 180,
    "output_tokens": 42,
    "duration_ms": 850,
    "metadata": {"language": "en"},
}
REASONED_ANSWER = {
    "role": "assistant",
    "parts": [
        {"type": "reasoning", "text": "The table has green tea.", "signature": "EqQBCgIYAhIM"},
        {"type": "text", "text": "Let me look. "},
        {"type": "tool_call", "id": "call-1", "name": "temperature", "arguments": {"tea": "green"}},
    ],
    "model": "example-1",
}
TOOL_RESULT = {
    "role": "tool",
    "parts": [{"type": "tool_result", "tool_call_id": "call-1", "content": "80 °C", "is_error": False}],
}
FILE = {
    "type": "file",
    "url": "https://files.example.org/kettle.jpg",
    "media_type": "image/jpeg",
    "name": "kettle.jpg",
    "size": 48_213,
}
NEW_FILE = {"role": "user", "content": None, "parts": [FILE]}
SHOWN_ANSWER = {
    "role": "assistant",
    "parts": [
        {"type": "text", "text": "About 80 °C for green tea."},
        {"type": "source", "url": "https://tea.example.org/green", "title": "Green tea", "quote": "80 °C"},
        {"type": "data", "data": {"chart": [60, 70, 80]}},
    ],
}
MESSAGE_CHANGE = {"metadata": {"feedback": {"stars": 5}}}
QUESTION: dict[str, Any] = {
    "id": QUESTION_ID,
    "conversation_id": CONVERSATION_ID,
    "seq": 1,
    "parent_id": None,
    "role": "user",
    "content": "How hot should the water be?",
    "status": "complete",
    "parts": None,
    "sources": [],
    "metadata": {},
    "model": None,
    "input_tokens": None,
    "output_tokens": None,
    "duration_ms": None,
    "external_id": None,
    "sent_at": None,
    "created_at": "2026-01-31T12:00:01.000000Z",
}
ANSWER: dict[str, Any] = {
    **QUESTION,
    **NEW_ANSWER,
    "id": ANSWER_ID,
    "seq": 2,
    "parent_id": QUESTION_ID,
    "parts": SHOWN_ANSWER["parts"],
    "created_at": "2026-01-31T12:00:04.250000Z",
}
RUNNING: dict[str, Any] = {
    **ANSWER,
    "content": "About 80",
    "status": "in_progress",
    "parts": None,
    "sources": [],
    "metadata": {},
    "input_tokens": None,
    "output_tokens": None,
    "duration_ms": None,
    "stream": {"last_event_id": "0190f0f0-12-8"},
}
ANSWERED = {"user_message": QUESTION, "assistant_message": ANSWER}
PENDING_ANSWER = {"user_message": QUESTION, "assistant_message": RUNNING}

EVENTS_EXAMPLE = """event: text
id: 0190f0f0-12-8
data: {"text":"About 80"}

event: end
id: 0190f0f0-14-26
data: {"status":"complete"}

"""

NEW_PROJECT = {"name": "Tea", "metadata": {"language": "en"}}
PROJECT: dict[str, Any] = {
    "id": PROJECT_ID,
    "owner_id": "local",
    "name": "Tea",
    "metadata": {"language": "en"},
    "documents": 1,
    "chunks": 3,
    "space": None,
    "version": 1,
    "created_at": "2026-01-31T11:58:00.000000Z",
    "updated_at": "2026-01-31T11:59:00.000000Z",
}
NEW_PROVIDER: dict[str, Any] = {
    "provider_name": "openai",
    "model_name": "gpt-5-mini",
    "api_config": {"api_key_env": "OPENAI_API_KEY", "settings": {"temperature": 0.2}},
}
LOCAL_PROVIDER: dict[str, Any] = {
    "provider_name": "openai-chat",
    "model_name": "qwen3-8b",
    "is_default": True,
    "api_config": {"base_url": "http://127.0.0.1:8080/v1", "api_key_env": "CHATKEEP_PROVIDER_LOCAL"},
}
PROVIDER: dict[str, Any] = {
    "id": PROVIDER_ID,
    "provider_name": "openai",
    "model_name": "gpt-5-mini",
    "is_default": False,
    "api_config": {
        "api_key_env": "OPENAI_API_KEY",
        "base_url": None,
        "instructions": None,
        "settings": {"temperature": 0.2},
        "history_tokens": None,
        "background": False,
    },
    "created_at": "2026-01-31T11:57:00.000000Z",
    "updated_at": "2026-01-31T11:57:00.000000Z",
}
FIRST_PROVIDER: dict[str, Any] = {
    **PROVIDER,
    "id": "e7ac71fe-0000-4000-8000-000000000001",
    "provider_name": "extractive",
    "model_name": "extractive",
    "is_default": True,
    "api_config": None,
    "created_at": "2026-01-31T11:50:00.000000Z",
    "updated_at": "2026-01-31T11:50:00.000000Z",
}
DOCUMENT: dict[str, Any] = {
    "id": DOCUMENT_ID,
    "owner_id": "local",
    "project_id": PROJECT_ID,
    "file_path": "tea/green.md",
    "title": "Green tea",
    "media_type": "text/markdown",
    "bytes": 1_204,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "chunks": 3,
    "created_at": "2026-01-31T11:59:00.000000Z",
    "updated_at": "2026-01-31T11:59:00.000000Z",
}
CHUNK: dict[str, Any] = {
    "n": 1,
    "header_anchor": "#temperature",
    "heading": "Green tea > Temperature",
    "text": "## Temperature\n\nAbout 80 °C.\n",
    "start": 240,
    "end": 269,
}
PASSAGE = {
    "document_id": DOCUMENT_ID,
    "file_path": "tea/green.md",
    "title": "Green tea",
    **CHUNK,
    "similarity_score": 0.83,
}

DAY_STATS = {
    "day": "2026-01-31",
    "answers": 12,
    "failed": 1,
    "interrupted": 0,
    "input_tokens": 2_160,
    "output_tokens": 504,
    "p50_ms": 820,
    "p95_ms": 1_900,
    "p99_ms": 2_400,
}


def _page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "total": None, "next": None}


class Named(dict[str, Any]):
    """Several examples, by name."""


def _named(**named: tuple[str, object]) -> Named:
    return Named({name: {"summary": summary, "value": value} for name, (summary, value) in named.items()})


REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "create_conversation": _named(
        new=("Create a conversation", NEW_CONVERSATION),
        latest=("Get the latest one of a context, or create it", LATEST_CONVERSATION),
        foreign=("Get the one that another system knows by this id, or create it", FOREIGN_CONVERSATION),
    ),
    "update_conversation": _named(
        change=("Set the title, remove one key of the metadata, set another", CONVERSATION_CHANGE),
        head=("Continue after an earlier message", {"head_id": QUESTION_ID}),
        provider=("Have another provider answer from now on", {"llm_provider_id": PROVIDER_ID}),
        labels=("Replace the labels", {"labels": ["pinned", "archived"]}),
    ),
    "append_message": _named(
        asked=("A question, which is answered", {"id": QUESTION_ID, "content": "How hot should the water be?"}),
        question=("What a user says, with an id that makes a retry safe", NEW_QUESTION),
        answer=("What an assistant answers, with its sources and counts", NEW_ANSWER),
        reasoned=("An answer with its reasoning and a tool call; the content is made from its text", REASONED_ANSWER),
        result=("What the tool returned", TOOL_RESULT),
        file=("A file alone, by reference", NEW_FILE),
        shown=("An answer with what the application shows beside it", SHOWN_ANSWER),
    ),
    "append_messages": _named(
        turn=("A question, and an answer with a tool call", {"messages": [NEW_QUESTION, REASONED_ANSWER, TOOL_RESULT]}),
    ),
    "update_message": _named(feedback=("Keep what the user thinks of it", MESSAGE_CHANGE)),
    "create_project": _named(new=("Create a project", NEW_PROJECT)),
    "update_project": _named(
        change=("Set the name, remove one key of the metadata", {"name": "Teas", "metadata": {"language": None}})
    ),
    "create_project_conversation": _named(
        new=("Create a conversation", NEW_CONVERSATION),
        latest=("Get the latest one of a context, or create it", LATEST_CONVERSATION),
    ),
    "create_provider": _named(
        hosted=("A model of OpenAI, with the key in OPENAI_API_KEY", NEW_PROVIDER),
        local=("A model server of your own, which answers from now on", LOCAL_PROVIDER),
    ),
    "update_provider": _named(
        default=("Make it the default", {"is_default": True}),
        model=("Another model of it", {"model_name": "gpt-5"}),
    ),
    "upload_document": _named(
        file=("A file with its path in the project", {"file": "# Green tea\n\n…", "file_path": "tea/green.md"})
    ),
}
"""Request bodies, by operation."""

RESPONSE_EXAMPLES: dict[str, Any] = {
    "create_conversation": {**CONVERSATION, "last_seq": 0, "head_id": None, "updated_at": CONVERSATION["created_at"]},
    "list_conversations": _page(CONVERSATION),
    "get_conversation": {**CONVERSATION, "messages": _page(QUESTION, ANSWER)},
    "update_conversation": {**CONVERSATION, "title": "Green tea", "metadata": {"stars": 5}},
    "append_message": _named(appended=("A message", QUESTION), answered=("A question and its answer", ANSWERED)),
    "append_message 202": PENDING_ANSWER,
    "answer_again": ANSWERED,
    "answer_again 202": PENDING_ANSWER,
    "stop_answer": {**ANSWER, "content": "About 80", "status": "interrupted"},
    "stop_answer 202": RUNNING,
    "answer_stats": {"days": [DAY_STATS], "total": {**DAY_STATS, "day": None}},
    "append_messages": _page(QUESTION, ANSWER),
    "update_message": {**ANSWER, "metadata": {"language": "en", **MESSAGE_CHANGE["metadata"]}},
    "list_messages": _page(QUESTION, ANSWER),
    "get_message": ANSWER,
    "list_siblings": _page(ANSWER),
    "search_messages": _page({"message": ANSWER, "title": "Tea", "snippet": "About 80 °C for green tea."}),
    "create_project": {**PROJECT, "documents": 0, "chunks": 0, "version": 0, "updated_at": PROJECT["created_at"]},
    "list_projects": _page(PROJECT),
    "get_project": PROJECT,
    "update_project": {**PROJECT, "name": "Teas", "metadata": {}},
    "create_project_conversation": {**CONVERSATION, "project_id": PROJECT_ID, "last_seq": 0, "head_id": None},
    "list_project_conversations": _page({**CONVERSATION, "project_id": PROJECT_ID}),
    "list_providers": _page(FIRST_PROVIDER, {**PROVIDER, "api_config": None}),
    "get_provider": PROVIDER,
    "create_provider": PROVIDER,
    "update_provider": {**PROVIDER, "is_default": True},
    "upload_document": {**DOCUMENT, "change": "new"},
    "upload_document 200": {**DOCUMENT, "change": "unchanged"},
    "list_documents": _page(DOCUMENT),
    "get_document": DOCUMENT,
    "list_chunks": {"items": [CHUNK], "total": 3, "next": "1"},
    "search_documents": {"items": [PASSAGE], "method": "hybrid", "note": None},
    "erase_me": {
        "owner_id": "local",
        "conversations": 12,
        "messages": 340,
        "search_entries": 338,
        "labels": 15,
        "projects": 1,
        "api_keys": 1,
        "requests": 0,
        "remaining": 0,
        "erased_at": "2026-01-31T12:05:00.000000Z",
    },
    "health": {"status": "ok"},
    "readiness": {"status": "ok"},
}
"""Response bodies, by operation."""
