"""Chat templates of the models people train, written down anew: they show what those show."""

from __future__ import annotations

_CONTENT = (
    "{%- macro content_of(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_TURN = "{{- '<|im_start|>' + m.role + '\\n' + content_of(m.content) + '<|im_end|>\\n' -}}"
_TOOLS = (
    "{%- if tools -%}{{- '<|im_start|>system\\n' -}}"
    "{%- if messages[0].role == 'system' -%}{{- content_of(messages[0].content) + '\\n\\n' -}}"
    "{%- endif -%}{{- '# Tools\\n\\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    "{{- '\\n</tools><|im_end|>\\n' -}}{%- endif -%}"
)
_ASK = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"

QWEN2_5 = (
    _CONTENT + "{%- for m in messages -%}{%- if loop.first and m.role != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
    + _TURN
    + "{%- endfor -%}"
    + _ASK
)
QWEN3_INSTRUCT = (
    _CONTENT
    + _TOOLS
    + "{%- for m in messages -%}{%- if not (tools and loop.first and m.role == 'system') -%}"
    + _TURN
    + "{%- endif -%}{%- endfor -%}"
    + _ASK
)


def _thinking(trim: str, closing: str) -> str:
    """Return a template that shows the thoughts of replies after the last question alone."""
    return (
        _CONTENT + _TOOLS + "{%- set ns = namespace(last=messages | length - 1, searching=true) -%}"
        "{%- for m in messages[::-1] -%}{%- set text = content_of(m.content) -%}"
        "{%- if ns.searching and m.role == 'user' and not (text.startswith('<tool_response>') "
        "and text.endswith('</tool_response>')) -%}"
        "{%- set ns.searching = false -%}{%- set ns.last = messages | length - 1 - loop.index0 -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{%- set text = content_of(m.content)" + trim + " -%}"
        "{%- if m.role == 'assistant' -%}{%- set thought = '' -%}"
        "{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}"
        "{%- elif '</think>' in text -%}"
        "{%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1] -%}"
        "{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
        "{{- '<|im_start|>assistant\\n' -}}"
        "{%- if loop.index0 > ns.last -%}"
        "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}{%- endif -%}"
        "{{- text + '<|im_end|>\\n' -}}"
        "{%- elif not (tools and loop.first and m.role == 'system') -%}"
        "{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- endfor -%}" + _ASK + "{%- if add_generation_prompt -%}" + closing + "{%- endif -%}"
    )


QWEN3_THINKING = _thinking("", "{{- '<think>\\n' -}}")
QWEN3_5 = _thinking(
    " | trim",
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}",
)
