"""What a model is given: the path of a conversation as the messages of a provider or framework, and back. No I/O.

One module for each form, with a function for each direction:

    openai_responses  to_openai_responses, from_openai_responses   items of OpenAI's Responses API
    openai_chat       to_openai_chat, from_openai_chat             messages of Chat Completions
    anthropic         to_anthropic, from_anthropic                 messages, and the system text apart
    gemini            to_gemini, from_gemini                       contents, and the system instruction apart
    pydantic_ai       to_pydantic_ai, from_pydantic_ai             ModelMessages
    window            window, Windowing                            the newest messages that fit a budget of tokens
    citations         Source as a Citation or a file_citation, and back

What they have in common, which `steps` sees to:

- Deleted messages and those in progress are never given. Interrupted and failed answers are, with what there is.
- Parts are what is given; `content` if there are none, or if none of them is a text.
- The role of the message decides. Calls, results and reasoning in a message of a user or of the system are left out:
  nothing that a user writes looks to the model like its own. A message of an assistant never becomes a system message.
- A call has one result, which follows it. A call without one gets one that says that it was interrupted; a result
  without its call is left out, and so is a second one.
- The id of a call is kept if every provider takes its form, and mapped for the call and its result if not.
- Reasoning goes only to the provider that its field `provider` names, and so does a file with a `file_id` and such a
  field; reasoning without the field goes nowhere. It is never given as text.
- What only one form has is kept in a field of the part that is named after the form, such as `anthropic`. Other forms
  ignore it. A part of the type `data` with such a field is a whole block that only this form has.
- Sources, data and parts of unknown types are not given.
"""
