"""Messages in the shapes of providers and frameworks, as parts: what a store has to give back to the byte.

Written after the documentation of each API, with values of our own. An object that has no `type` of its own is wrapped:
`{"type": "gemini", …}` by its maker's name, or `{"type": "data", "data": …}`; so is one of the type `text` that has its
text elsewhere than in `text`.
"""

from typing import Any

type Parts = list[dict[str, Any]]

SIGNED = "EuYBCkYICxgCKkAe/9+Q==" * 60
"""A signature of a thought. It counts byte by byte."""
BASE64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 40
"""A picture."""


def wrapped(data: Any) -> Parts:
    """What has no type, as one part."""
    return [{"type": "data", "data": data}]


OPENAI_RESPONSES: dict[str, Parts] = {
    "message with annotations": [
        {
            "id": "msg_0a1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "Green tea likes 80 °C.",
                    "annotations": [
                        {
                            "type": "url_citation",
                            "start_index": 0,
                            "end_index": 9,
                            "url": "https://tea.test/green",
                            "title": "Green tea",
                        },
                        {"type": "file_citation", "index": 21, "file_id": "file-9", "filename": "tea.pdf"},
                        {
                            "type": "container_file_citation",
                            "container_id": "cntr_1",
                            "file_id": "cfile_2",
                            "filename": "chart.png",
                            "start_index": 3,
                            "end_index": 4,
                        },
                        {"type": "file_path", "file_id": "file-10", "index": 0},
                    ],
                    "logprobs": [{"token": "Green", "bytes": [71, 114], "logprob": -0.0125, "top_logprobs": []}],
                }
            ],
        }
    ],
    "refusal": [
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot brew that."}]}
    ],
    "reasoning": [
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "**Weighing** the leaves"}],
            "content": [{"type": "reasoning_text", "text": "80 or 90?"}],
            "encrypted_content": SIGNED,
            "status": None,
        }
    ],
    "function call": [
        {
            "id": "fc_1",
            "type": "function_call",
            "call_id": "call_1",
            "name": "kettle",
            "arguments": '{"degrees": 80.0,  "unit":"C"}',
            "status": "completed",
        }
    ],
    "function call output": [
        {"type": "function_call_output", "call_id": "call_1", "output": '{"ok":true}'},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "hot"}, {"type": "input_image", "file_id": "file-3"}],
        },
    ],
    "web search": [
        {
            "id": "ws_1",
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "green tea", "sources": [{"type": "url", "url": "https://tea.test"}]},
        }
    ],
    "file search": [
        {
            "id": "fs_1",
            "type": "file_search_call",
            "status": "completed",
            "queries": ["temperature", "温度"],
            "results": [
                {
                    "file_id": "file-1",
                    "filename": "tea.md",
                    "score": 0.875,
                    "text": "80",
                    "attributes": {"year": 2025.0},
                }
            ],
        }
    ],
    "computer call": [
        {
            "id": "cu_1",
            "type": "computer_call",
            "call_id": "call_3",
            "status": "completed",
            "action": {"type": "drag", "path": [{"x": 1, "y": -2}, {"x": 30, "y": 40}]},
            "pending_safety_checks": [{"id": "sc_1", "code": "malicious_instructions", "message": "Look first"}],
        },
        {
            "type": "computer_call_output",
            "call_id": "call_3",
            "output": {"type": "computer_screenshot", "image_url": "https://files.test/s.png"},
            "acknowledged_safety_checks": [],
        },
    ],
    "code interpreter": [
        {
            "id": "ci_1",
            "type": "code_interpreter_call",
            "container_id": "cntr_1",
            "code": "print('\\u0041', \"tea\\n\")\n",
            "outputs": [{"type": "logs", "logs": "A tea\n"}, {"type": "image", "url": "https://files.test/c.png"}],
            "status": "completed",
        }
    ],
    "mcp": [
        {
            "id": "mcpl_1",
            "type": "mcp_list_tools",
            "server_label": "tea",
            "tools": [{"name": "brew", "input_schema": {"type": "object", "properties": {}}, "annotations": None}],
        },
        {"id": "mcpr_1", "type": "mcp_approval_request", "server_label": "tea", "name": "brew", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
        {
            "id": "mcp_1",
            "type": "mcp_call",
            "server_label": "tea",
            "name": "brew",
            "arguments": '{"cups":2}',
            "output": None,
            "error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no water"}]},
        },
    ],
    "image generation": [
        {"id": "ig_1", "type": "image_generation_call", "status": "completed", "result": BASE64, "revised_prompt": "🍵"}
    ],
    "local shell and custom tool": [
        {
            "id": "lsh_1",
            "type": "local_shell_call",
            "call_id": "call_5",
            "action": {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": None},
            "status": "completed",
        },
        {"type": "custom_tool_call", "call_id": "call_6", "name": "brew", "input": "two cups\tof\x00sencha"},
    ],
    "input of a user": [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is in this cup?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}", "detail": "auto"},
                {"type": "input_file", "filename": "tea.pdf", "file_data": f"data:application/pdf;base64,{BASE64}"},
                {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
            ],
        }
    ],
    "item reference and compaction": [
        {"type": "item_reference", "id": "msg_0a1"},
        {"type": "compaction", "id": "cmp_1", "encrypted_content": SIGNED},
    ],
}

OPENAI_CHAT: dict[str, Parts] = {
    "tool calls, no content": wrapped(
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "kettle", "arguments": '{"degrees":80}'}},
                {"id": "call_2", "type": "function", "function": {"name": "kettle", "arguments": '{"degrees":'}},
                {"id": "call_3", "type": "custom", "custom": {"name": "brew", "input": "sencha"}},
            ],
        }
    ),
    "content parts": [
        {"type": "text", "text": "Is it hot?"},
        {"type": "image_url", "image_url": {"url": "https://files.test/cup.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "mp3"}},
        {"type": "file", "file": {"file_id": "file-1", "filename": "tea.pdf"}},
    ],
    "refusal": [{"type": "refusal", "refusal": "No."}],
    "reply in audio": wrapped(
        {
            "role": "assistant",
            "content": None,
            "audio": {"id": "audio_1", "expires_at": 1_798_761_600, "data": BASE64, "transcript": "Eighty degrees."},
            "annotations": [],
        }
    ),
    "tool message": wrapped({"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "80"}]}),
    "reasoning of others": wrapped(
        {
            "role": "assistant",
            "content": "80 °C",
            "reasoning_content": "Leaves burn above that.",
            "reasoning_details": [
                {"type": "reasoning.encrypted", "data": SIGNED, "id": "r1", "format": "x", "index": 0}
            ],
        }
    ),
    "text of a thread": wrapped(
        {
            "type": "text",
            "text": {"value": "See 【4:0†tea】", "annotations": [{"type": "file_citation", "start_index": 4}]},
        }
    ),
}

ANTHROPIC: dict[str, Parts] = {
    "thinking": [
        {"type": "thinking", "thinking": "Leaves first.\n\nThen water.", "signature": SIGNED},
        {"type": "text", "text": "80 °C."},
    ],
    "redacted thinking": [{"type": "redacted_thinking", "data": SIGNED}, {"type": "text", "text": "Done."}],
    "parallel tool use": [
        {"type": "text", "text": "I heat two kettles."},
        {"type": "tool_use", "id": "toolu_1", "name": "kettle", "input": {"degrees": 80, "cups": [1, 2]}},
        {"type": "tool_use", "id": "toolu_2", "name": "kettle", "input": {}, "caller": {"type": "direct"}},
    ],
    "tool results": [
        {
            "type": "tool_result",
            "tool_use_id": "toolu_1",
            "content": [
                {"type": "text", "text": "80"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
                {"type": "search_result", "source": "https://tea.test", "title": "Tea", "content": []},
            ],
        },
        {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": "no such kettle"},
        {"type": "tool_result", "tool_use_id": "toolu_3"},
    ],
    "citations": [
        {
            "type": "text",
            "text": "Green tea likes 80 °C",
            "citations": [
                {
                    "type": "char_location",
                    "cited_text": "80 °C",
                    "document_index": 0,
                    "document_title": None,
                    "start_char_index": 7,
                    "end_char_index": 12,
                    "file_id": None,
                },
                {
                    "type": "page_location",
                    "cited_text": "80",
                    "document_index": 1,
                    "document_title": "Tea",
                    "start_page_number": 3,
                    "end_page_number": 4,
                },
                {
                    "type": "content_block_location",
                    "cited_text": "hot",
                    "document_index": 2,
                    "start_block_index": 0,
                    "end_block_index": 1,
                },
                {
                    "type": "web_search_result_location",
                    "url": "https://tea.test",
                    "title": "Tea",
                    "encrypted_index": SIGNED,
                    "cited_text": "…",
                },
                {
                    "type": "search_result_location",
                    "source": "kb://tea/7",
                    "title": None,
                    "search_result_index": 0,
                    "start_block_index": 0,
                    "end_block_index": 1,
                    "cited_text": "tea",
                },
            ],
        }
    ],
    "images and documents": [
        {"type": "image", "source": {"type": "url", "url": "https://files.test/cup.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_011"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": BASE64},
            "title": "Tea",
            "context": "An old book",
            "citations": {"enabled": True},
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "80\r\n"}},
        {"type": "container_upload", "file_id": "file_012"},
        {"type": "text", "text": "What do they say?", "cache_control": {"type": "ephemeral"}},
    ],
    "server tools": [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "緑茶"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [
                {
                    "type": "web_search_result",
                    "url": "https://tea.test",
                    "title": "Tea",
                    "encrypted_content": SIGNED,
                    "page_age": None,
                }
            ],
        },
        {"type": "server_tool_use", "id": "srvtoolu_2", "name": "code_execution", "input": {"code": "1/3"}},
        {
            "type": "code_execution_tool_result",
            "tool_use_id": "srvtoolu_2",
            "content": {
                "type": "code_execution_result",
                "stdout": "0.3333333333333333\n",
                "stderr": "",
                "return_code": 0,
                "content": [],
            },
        },
        {
            "type": "web_fetch_tool_result",
            "tool_use_id": "srvtoolu_3",
            "content": {"type": "web_fetch_tool_result_error", "error_code": "url_not_allowed"},
        },
    ],
    "mcp": [
        {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "brew", "server_name": "tea", "input": {"cups": 2}},
        {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": []},
    ],
}


def gemini(*parts: dict[str, Any]) -> Parts:
    """Parts of Gemini, which are told apart by their keys."""
    return [{"type": "gemini", **part} for part in parts]


GEMINI: dict[str, Parts] = {
    "thought and signature": gemini(
        {"text": "**Leaves**", "thought": True},
        {"text": "80 °C", "thoughtSignature": SIGNED},
        {"text": "", "thoughtSignature": SIGNED},
    ),
    "function call": gemini(
        {"functionCall": {"id": "fc-1", "name": "kettle", "args": {"degrees": 80.0}}, "thoughtSignature": SIGNED},
        {"functionCall": {"name": "kettle", "args": {}}},
    ),
    "function response": gemini(
        {
            "functionResponse": {
                "id": "fc-1",
                "name": "kettle",
                "response": {"output": {"ok": True}},
                "parts": [{"inlineData": {"mimeType": "image/png", "data": BASE64}}],
                "willContinue": False,
                "scheduling": "SILENT",
            }
        }
    ),
    "inline and file data": gemini(
        {"text": "What is this?"},
        {"inlineData": {"mimeType": "image/png", "data": BASE64, "displayName": "cup"}},
        {
            "fileData": {"mimeType": "video/mp4", "fileUri": "https://files.test/v1beta/files/1"},
            "videoMetadata": {"startOffset": "1.5s", "fps": 0.5},
        },
    ),
    "code": gemini(
        {"executableCode": {"language": "PYTHON", "code": "print(80)\n"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "80\n"}},
    ),
    "grounding": [
        *gemini({"text": "Green tea likes 80 °C."}),
        {
            "type": "data",
            "data": {
                "groundingMetadata": {
                    "webSearchQueries": ["green tea"],
                    "searchEntryPoint": {"renderedContent": "<style>a{}</style>\n<div>tea</div>"},
                    "groundingChunks": [{"web": {"uri": "https://tea.test", "title": "tea.test"}}],
                    "groundingSupports": [
                        {
                            "segment": {"startIndex": 0, "endIndex": 22, "text": "Green tea likes 80 °C."},
                            "groundingChunkIndices": [0],
                            "confidenceScores": [0.9873],
                        }
                    ],
                },
                "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}],
            },
        },
    ],
}

PYDANTIC_AI: dict[str, Parts] = {
    "request": wrapped(
        {
            "kind": "request",
            "instructions": None,
            "timestamp": "2026-01-31T12:00:00.000001Z",
            "parts": [
                {"part_kind": "system-prompt", "content": "Be brief.", "dynamic_ref": None},
                {
                    "part_kind": "user-prompt",
                    "content": [
                        "What is this?",
                        {"kind": "image-url", "url": "https://files.test/cup.png", "force_download": False},
                        {"kind": "binary", "data": BASE64, "media_type": "audio/wav", "vendor_metadata": None},
                    ],
                },
            ],
        }
    ),
    "response": wrapped(
        {
            "kind": "response",
            "model_name": "tea-1",
            "usage": {"input_tokens": 12, "output_tokens": 0, "details": {"reasoning_tokens": 3}},
            "finish_reason": "tool_call",
            "parts": [
                {"part_kind": "thinking", "content": "80?", "id": None, "signature": SIGNED, "provider_name": "x"},
                {"part_kind": "text", "content": "I look.", "id": "msg_1"},
                {"part_kind": "tool-call", "tool_name": "kettle", "args": '{"d":80}', "tool_call_id": "c1"},
                {"part_kind": "tool-call", "tool_name": "kettle", "args": {"d": 80}, "tool_call_id": "c2"},
                {"part_kind": "builtin-tool-call", "tool_name": "web_search", "args": {}, "tool_call_id": "c3"},
                {"part_kind": "file", "content": {"kind": "binary", "data": BASE64, "media_type": "image/png"}},
            ],
        }
    ),
    "tool return and retry": wrapped(
        [
            {"part_kind": "tool-return", "tool_name": "kettle", "content": {"ok": [1, 2.0]}, "tool_call_id": "c1"},
            {
                "part_kind": "retry-prompt",
                "tool_name": "kettle",
                "tool_call_id": "c2",
                "content": [{"type": "missing", "loc": ["degrees"], "msg": "Field required", "input": {}}],
            },
        ]
    ),
}

LANGCHAIN: dict[str, Parts] = {
    "message with tool calls": wrapped(
        {
            "type": "ai",
            "data": {
                "content": "",
                "additional_kwargs": {
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"arguments": "{}"}}]
                },
                "response_metadata": {"finish_reason": "tool_calls", "logprobs": None, "system_fingerprint": "fp_1"},
                "id": "run--1-0",
                "example": False,
                "tool_calls": [{"name": "kettle", "args": {"degrees": 80}, "id": "c1", "type": "tool_call"}],
                "invalid_tool_calls": [
                    {"name": "kettle", "args": '{"degrees":', "id": "c2", "error": None, "type": "invalid_tool_call"}
                ],
                "usage_metadata": {"input_tokens": 9, "output_tokens": 0, "input_token_details": {"cache_read": 0}},
            },
        }
    ),
    "content blocks": [
        {"type": "reasoning", "reasoning": "Leaves.", "extras": {"signature": SIGNED}},
        {
            "type": "text",
            "text": "80 °C",
            "annotations": [{"type": "citation", "url": "https://tea.test", "start_index": 0, "end_index": 2}],
        },
        {"type": "tool_call", "id": "c1", "name": "kettle", "args": {"degrees": 80}},
        {"type": "server_tool_call", "id": "c2", "name": "web_search", "args": {}},
        {"type": "server_tool_result", "tool_call_id": "c2", "status": "success", "output": []},
        {"type": "image", "base64": BASE64, "mime_type": "image/png"},
        {"type": "non_standard", "value": {"vendor": [None, -0.0, 1e-7]}},
    ],
    "tool message": wrapped(
        {
            "type": "tool",
            "data": {"content": "80", "tool_call_id": "c1", "artifact": {"rows": [[1]]}, "status": "error"},
        }
    ),
}

AI_SDK: dict[str, Parts] = {
    "text and reasoning": [
        {"type": "step-start"},
        {"type": "reasoning", "text": "…", "state": "done", "providerMetadata": {"anthropic": {"signature": SIGNED}}},
        {"type": "text", "text": "Eighty ", "state": "done"},
        {"type": "text", "text": "degrees.", "state": "streaming"},
    ],
    "tool states": [
        {"type": "tool-kettle", "toolCallId": "c1", "state": "input-streaming", "input": {"degr": None}},
        {"type": "tool-kettle", "toolCallId": "c2", "state": "input-available", "input": {"degrees": 80}},
        {
            "type": "tool-kettle",
            "toolCallId": "c3",
            "state": "output-available",
            "input": {"degrees": 80},
            "output": {"ok": True},
            "preliminary": False,
            "callProviderMetadata": {"google": {"thoughtSignature": SIGNED}},
        },
        {
            "type": "tool-kettle",
            "toolCallId": "c4",
            "state": "output-error",
            "input": None,
            "rawInput": '{"degrees":',
            "errorText": "not JSON",
        },
        {
            "type": "tool-kettle",
            "toolCallId": "c5",
            "state": "approval-responded",
            "input": {},
            "approval": {"id": "a1", "approved": False, "reason": "too hot"},
        },
        {"type": "dynamic-tool", "toolName": "brew", "toolCallId": "c6", "state": "output-available", "output": [1]},
    ],
    "sources": [
        {"type": "source-url", "sourceId": "s1", "url": "https://tea.test", "title": "Tea"},
        {
            "type": "source-document",
            "sourceId": "s2",
            "mediaType": "application/pdf",
            "title": "Tea",
            "filename": "t.pdf",
        },
    ],
    "file": [
        {"type": "text", "text": "What is this?"},
        {"type": "file", "mediaType": "image/png", "filename": "cup.png", "url": f"data:image/png;base64,{BASE64}"},
    ],
    "data": [
        {"type": "data-weather", "id": "w1", "data": {"city": "京都", "degrees": -1.5}},
        {"type": "data-progress", "data": 100},
    ],
}

OTHERS: dict[str, Parts] = {
    "telemetry": [
        {"type": "reasoning", "content": "Leaves."},
        {"type": "tool_call", "id": "c1", "name": "kettle", "arguments": {"degrees": 80}},
        {"type": "tool_call_response", "id": "c1", "response": {"ok": True}},
        *wrapped({"type": "text", "content": "80 °C"}),
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": BASE64},
    ],
    "bedrock": wrapped(
        [
            {"reasoningContent": {"reasoningText": {"text": "…", "signature": SIGNED}}},
            {"toolUse": {"toolUseId": "t1", "name": "kettle", "input": {}}},
            {"toolResult": {"toolUseId": "t1", "status": "success", "content": [{"json": {"ok": True}}]}},
            {"cachePoint": {"type": "default"}},
        ]
    ),
    "cohere": [
        {"type": "thinking", "thinking": "Leaves."},
        {"type": "text", "text": "80"},
        *wrapped({"citations": [{"start": 0, "end": 2, "text": "80", "sources": [{"type": "document", "id": "d:0"}]}]}),
    ],
    "mcp content": [
        {"type": "text", "text": "80", "annotations": {"audience": ["user"], "priority": 0.0}},
        {"type": "resource_link", "uri": "file:///tea.md", "name": "tea", "mimeType": "text/markdown"},
        {"type": "resource", "resource": {"uri": "tea://1", "blob": BASE64}},
        {"type": "audio", "data": BASE64, "mimeType": "audio/wav"},
    ],
}

SHAPES: dict[str, Parts] = {
    f"{maker}: {name}": parts
    for maker, shapes in (
        ("OpenAI Responses", OPENAI_RESPONSES),
        ("OpenAI Chat", OPENAI_CHAT),
        ("Anthropic", ANTHROPIC),
        ("Gemini", GEMINI),
        ("pydantic-ai", PYDANTIC_AI),
        ("LangChain", LANGCHAIN),
        ("AI SDK", AI_SDK),
        ("others", OTHERS),
    )
    for name, parts in shapes.items()
}
"""Every shape by its name."""
