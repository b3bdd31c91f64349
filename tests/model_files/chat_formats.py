"""Chat templates that say in few words what those of published models do: how turns are marked, and what is done to contents before."""

from typing import NamedTuple


class ChatFormat(NamedTuple):
    """control: texts of its control tokens."""

    source: str
    control: tuple[str, ...]


CHAT_FORMATS = {
    "turns in one expression": ChatFormat(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    ),
    "trimmed, with a header and a date": ChatFormat(
        "{{- bos_token }}{% for m in messages %}{% set content = '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content|trim "
        "~ '<|eot_id|>' %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}",
        ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    ),
    "roles by other names": ChatFormat(
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + (m['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}<start_of_turn>model\n",
        ("<s>", "<start_of_turn>", "<end_of_turn>"),
    ),
    "tokens made of roles": ChatFormat(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}<|assistant|>\n",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"),
    ),
    "instructions in brackets": ChatFormat(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ '%s' % m.content.strip() }}[/INST]"
        "{% else %}{{ ' {} '.format(m.content) ~ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    "a macro, and reasoning cut out": ChatFormat(
        "{% macro shown(c) %}{{ c }}{% endmacro %}{% for m in messages %}{% set content = shown(m.content)|trim %}"
        "{% if content.startswith('<tool_response>') and content.endswith('</tool_response>') %}{% set kind = 'tool' %}"
        "{% else %}{% set kind = m.role %}{% endif %}"
        "{% if m.role == 'assistant' and '</think>' in content %}"
        "{% set why = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
        "{{ '<|im_start|>' + kind + '\n<think>\n' + why.strip('\n') + '\n</think>\n\n' + content }}"
        "{% else %}{{ '<|im_start|>' ~ kind ~ '\n' ~ content }}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "contents put together anew": ChatFormat(
        "{% macro without_thoughts(text) %}{% set ns = namespace(kept='') %}{% for part in text.split('</think>') %}"
        "{% set ns.kept = ns.kept + part.split('<think>')[0] %}{% endfor %}{{ ns.kept | trim }}{% endmacro %}"
        "{% for m in messages %}<|turn>{{ m.role }}\n{{ without_thoughts(m.content) }}<turn|>\n{% endfor %}<|turn>model\n",
        ("<|turn>", "<turn|>", "<|think|>"),
    ),
    "all in one list": ChatFormat(
        "{% set ns = namespace(turns=[]) %}{% for m in messages %}{% set ns.turns = ns.turns + ['<|start_of_role|>', m.role, "
        "'<|end_of_role|>', m.content|replace('\r', '')] %}{% endfor %}{{ ns.turns|join }}<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    "contents as JSON, cut and changed": ChatFormat(
        "{% for m in messages %}<|begin|>{{ m|tojson(indent=2) }}{{ m.content[1:-1] }}"
        "{{ m.content|upper|indent(4, true) }}{{ '-'.join([m.content, m.content]) }}{% for c in m.content %}{{ c }}{% endfor %}"
        "{{ m.content|list|join }}{{ (m.content * 2)|title }}{{ m.content.partition('|')|join('|') }}"
        "{% set block %}{{ m.content }}{% endset %}{{ block|reverse|reverse }}{{ [m.content, 'x']|string }}"
        "{{ m.values()|map('trim')|join('') }}{{ m.content.replace('e', 'e').splitlines() }}<|end|>{% endfor %}",
        ("<|begin|>", "<|end|>", "<|END|>"),
    ),
}
