"""The chat template of the tiny model: ChatML, and an image in its place between the texts.

The model was trained when nothing separated the parts of a prompt, so texts that are shown are
trimmed: whoever renders the template, in this process or behind a server, gives it the prompts that
it knows.
"""

from __future__ import annotations

from typing import Any

_KEPT = "{{ part['text'] }}"
_TRIMMED = "{{ part['text'] if message['role'] == 'assistant' else part['text'] | trim }}"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}" + _TRIMMED + "{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_FORMER = TEMPLATE.replace(_TRIMMED, _KEPT)


def current(template: Any) -> Any:
    """Return a template; that of policies saved before parts were separated becomes today's.

    >>> current(TEMPLATE) == current(_FORMER) == TEMPLATE
    True
    """
    return TEMPLATE if template == _FORMER else template
