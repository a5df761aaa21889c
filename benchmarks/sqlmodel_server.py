"""The storage service as it is usually written with FastAPI and SQLModel: `python -m benchmarks.sqlmodel_server URL`.

A session for each request, get, add, commit, refresh. It prints its port.
"""

import importlib
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import uvicorn
import uvloop
from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, Field

orm: Any = importlib.import_module("sqlmodel")
alchemy: Any = importlib.import_module("sqlalchemy")
asynchronous: Any = importlib.import_module("sqlalchemy.ext.asyncio")
sessions: Any = importlib.import_module("sqlmodel.ext.asyncio.session")

USER = "local"


def _now() -> datetime:
    return datetime.now(UTC)


def _moment() -> Any:
    return orm.Field(default_factory=_now, sa_type=alchemy.DateTime(timezone=True))


class Conversation(orm.SQLModel, table=True):  # type: ignore[misc, call-arg]
    """A conversation of a user's."""

    id: UUID = orm.Field(default_factory=uuid4, primary_key=True)
    user_id: str = orm.Field(index=True)
    created_at: datetime = _moment()
    updated_at: datetime = _moment()


class Message(orm.SQLModel, table=True):  # type: ignore[misc, call-arg]
    """A message of a conversation."""

    id: UUID = orm.Field(default_factory=uuid4, primary_key=True)
    conversation_id: UUID = orm.Field(foreign_key="conversation.id", index=True)
    role: str
    content: str
    created_at: datetime = _moment()


class NewMessage(BaseModel):
    """What a client sends."""

    role: Literal["user", "assistant", "system"]
    content: str = Field(min_length=1)


def create(engine: Any) -> FastAPI:
    """The application."""
    app = FastAPI()

    async def session() -> AsyncIterator[Any]:
        async with sessions.AsyncSession(engine, expire_on_commit=False) as opened:
            yield opened

    async def own(opened: Any, conversation_id: UUID) -> Any:
        found = await opened.get(Conversation, conversation_id)
        if found is None:
            raise HTTPException(404)
        if found.user_id != USER:
            raise HTTPException(403)
        return found

    @app.post("/api/conversations", status_code=201, response_model=Conversation)
    async def create_conversation(opened: Annotated[Any, Depends(session)]) -> Any:
        conversation = Conversation(user_id=USER)
        opened.add(conversation)
        await opened.commit()
        await opened.refresh(conversation)
        return conversation

    @app.post("/api/conversations/{conversation_id}/messages", status_code=201, response_model=Message)
    async def append(conversation_id: UUID, new: NewMessage, opened: Annotated[Any, Depends(session)]) -> Any:
        conversation = await own(opened, conversation_id)
        message = Message(conversation_id=conversation_id, role=new.role, content=new.content)
        conversation.updated_at = _now()
        opened.add(message)
        opened.add(conversation)
        await opened.commit()
        await opened.refresh(message)
        return message

    @app.get("/api/conversations/{conversation_id}/messages", response_model=list[Message])
    async def history(
        conversation_id: UUID, opened: Annotated[Any, Depends(session)], limit: Annotated[int, Query(ge=1)] = 50
    ) -> Any:
        await own(opened, conversation_id)
        statement = (
            orm.select(Message)
            .where(Message.conversation_id == conversation_id)
            .order_by(alchemy.desc(Message.created_at), alchemy.desc(Message.id))
            .limit(limit)
        )
        return list((await opened.exec(statement)).all())[::-1]

    return app


async def _serve(url: str) -> None:
    engine = asynchronous.create_async_engine(url.replace("postgresql", "postgresql+asyncpg"), pool_size=10)
    async with engine.begin() as connection:
        await connection.run_sync(orm.SQLModel.metadata.create_all)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            create(engine), http="httptools", access_log=False, log_level="warning", timeout_keep_alive=300
        )
        await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
