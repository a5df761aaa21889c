"""Records the voice conversations of Pipecat while they are spoken.

    pair = LLMContextAggregatorPair(context)
    attach(pair, recorder, owner="ada", conversation_id=conversation.id)

Messages are read from the language model's context, in its order: the reader looks at what is new there when an
aggregator writes to it or has the model read it. Times of speech, what is not in the context, and tool calls come from
the frames that pass the aggregators, which are intercepted in `process_frame` and `push_frame`. Observers and Pipecat's
events would not do: they come late, from a queue that is discarded when the pipeline ends, or in tasks of their own.
A turn is what Pipecat calls so, of the user or of the bot.
"""

from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakKeyDictionary

from chatkeep.errors import InvalidInput
from chatkeep.ids import valid_id
from chatkeep.integrations.pipecat.added import Added
from chatkeep.integrations.pipecat.assistant import Assistant
from chatkeep.integrations.pipecat.context import ContextReader
from chatkeep.integrations.pipecat.frames import Frames
from chatkeep.integrations.pipecat.outbox import Outbox
from chatkeep.integrations.pipecat.tools import Tools
from chatkeep.integrations.pipecat.user import User
from chatkeep.values import valid_owner

if TYPE_CHECKING:
    from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregator, LLMContextAggregatorPair

    from chatkeep.recorder import Recorder


def attach(
    pair: "LLMContextAggregatorPair",
    recorder: "Recorder",
    *,
    owner: str,
    conversation_id: UUID | str,
    tools: bool = False,
) -> None:
    """Record what is said in a pipeline, until it ends. Call it once, before the pipeline runs.

    A user's message is what was transcribed or typed, an assistant's what was spoken. The application's own `user` and
    `assistant` messages in the language model's context are recorded, too; its instructions (`system`, `developer`),
    what the context has before this call, and what replaces it are not. The status is `interrupted` if the user
    interrupted or hung up, or the pipeline ended before the reply did. `sent_at` is when the speech started, or else
    the turn, or when a message came into the context. The metadata has, if known,

    - `speech`: `started_at` and `stopped_at`
    - `user_id`: the speaker; `user_ids` if there were several
    - `typed`: true for what the user typed, through RTVI
    - `kind`: `backchannel` for a "mhm", `aside` for speech that is not in the language model's context, `added` for the
      application's messages there, `file` for a message with images, audio or other files, which `parts` describe

    With `tools`, a tool call is a message when it has ended: the result or CANCELLED. Its parts are a `tool_call` and
    its `tool_result`; the metadata has `tool_call_id` and `tool_calls`, too, as in older versions.

    A message that the recorder refuses is logged, and the conversation continues.
    Raises InvalidId and InvalidInput, the latter also if Pipecat is not installed, or if the pair is recorded in this
    conversation already.
    """
    id_ = valid_id(conversation_id)
    outbox = Outbox(recorder, valid_owner(owner), id_)
    _check_pipecat()
    user, assistant = pair
    _check_once(user, id_)
    user_frames, assistant_frames = Frames(user), Frames(assistant)
    added = Added(outbox)
    context = ContextReader(user.context, outbox, added.take)
    added.listen(user_frames)
    context.listen(user_frames)
    context.listen(assistant_frames)
    User(outbox, context).listen(user_frames)
    Assistant(outbox, context).listen(assistant_frames)
    if tools:
        Tools(outbox).listen(assistant_frames)


_recorded: "WeakKeyDictionary[LLMContextAggregator, set[UUID]]" = WeakKeyDictionary()
"""In which conversations a pair is recorded, by its user's aggregator."""


def _check_once(user: "LLMContextAggregator", conversation_id: UUID) -> None:
    conversations = _recorded.setdefault(user, set())
    if conversation_id in conversations:
        raise InvalidInput(
            "this pair of aggregators is recorded in this conversation already, and again every message would be twice"
            " in it; call attach once for each pair",
            got=conversation_id,
        )
    conversations.add(conversation_id)


def _check_pipecat() -> None:
    try:
        import pipecat.frames.frames  # noqa: F401 - to check that it is installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pipecat":
            raise
        raise InvalidInput("voice conversations need pipecat: pip install 'chatkeep[pipecat]'") from None
