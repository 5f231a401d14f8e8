#!/usr/bin/env python3
"""Golden file for crates/text: chat templates rendered by transformers.

    python3 scripts/goldens/templates.py > crates/text/tests/data/renderings.jsonl

Needs: transformers (seen with 5.23) and jinja2. Each line: the template (a file of this repository, or its text), the
input, and either `expect` or `error`.
"""

import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ["crates/text/src/template/built_in.jinja", "crates/nano/model/chat_template.jinja"]

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now & later <é>, 天气",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "scale": {"type": "number", "default": 1.0}}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3, "exact": True, "tags": ["a", None], "f": 1e-7}}}

CONVERSATIONS = [
    dict(messages=[{"role": "user", "content": "Hi"}]),
    dict(messages=[{"role": "user", "content": " padded \u00a0\n"}], enable_thinking=True),
    dict(messages=[{"role": "user", "content": "Hi"}], enable_thinking=False),
    dict(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🦀"},
                   {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOk."}, {"role": "user", "content": "More"}]),
    dict(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "why"}],
         add_generation_prompt=False),
    dict(messages=[{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]),
    dict(messages=[{"role": "user", "content": "w?"}, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
                   {"role": "tool", "content": "rain"}, {"role": "tool", "content": "sun"}], tools=TOOLS),
    dict(messages=[{"role": "system", "content": "S"}, {"role": "user", "content": "w?"}], tools=TOOLS),
    dict(messages=[{"role": "user", "content": "a"}, {"role": "system", "content": "late"}]),
    dict(messages=[{"role": "narrator", "content": "a"}]),
    dict(messages=[{"role": "user", "content": None}]),
]

VALUES = {"t": True, "n": None, "f": 1e16, "g": 0.1, "h": 100.0, "i": 1e-7, "big": 18446744073709551615, "neg": -0.0,
          "list": [1, "a'b", None, True, 2.5], "map": {"k": "v\n", "x": {"y": []}, "q": "\"'"}, "s": "  a\x1f\u00a0 ", "c": "\x7f\x01é\u00ad"}
EXPRESSIONS = [
    "{{ m.t }} {{ m.n }} {{ m.f }} {{ m.g }} {{ m.h }} {{ m.i }} {{ m.big }} {{ m.neg }}",
    "{{ m.list }}", "{{ m.map }}", "{{ [m.c] }}", "{{ m.t | string }}{{ m.n | string }}{{ m.f | string }}",
    "[{{ m.s | trim }}][{{ m.s.strip() }}][{{ m.s.lstrip() }}][{{ m.s.rstrip() }}]",
    "{{ m.list | tojson }}{{ m.map | tojson }}{{ m | tojson }}",
    "{{ m.map | tojson(separators=(',', ':')) }}", "{{ m.map | tojson(indent=1) }}", "{{ m | tojson(indent=2, sort_keys=true) }}",
    "{{ '<é&>' | tojson }}{{ 'é🦀\\x7f' | tojson(ensure_ascii=true) }}{{ m.c | tojson }}",
    "{{ m.absent }}|{{ m.map is sequence }} {{ 'x' is sequence }} {{ 1 is sequence }} {{ m.map is iterable }} {{ m.absent is none }}",
    "{{ 'a b  c'.split() }}{{ 'x--y'.split('--')[-1] }}{{ 'a.b.c'.split('.', 1) }}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "a\n  {% if true %}\nb\n  {% endif %}\nc\n", "{% generation %}x{%- endgeneration %}\n y",
    "{{ m.list[::-1] }}{{ m.list[1:3] }}{{ m.list[-1] }}{{ m.list | length }}{{ 'abc'[::-1] }}",
    "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'a-b'.title() }}{{ ' x'.startswith((' ', 'y')) }}",
    "{{ m.map.items() | list }}{{ m.map.get('zz') }}{{ m.map.get('zz', 4) }}{% for k, v in m.map | items %}{{ k }}={{ v }};{% endfor %}",
    "{{ 7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 3 }} {{ 7 % 4 }} {{ 'a' * 3 }} {{ [1] + [2] }}",
    "{{ 'x' if m.n is none else 'y' }}{{ m.absent is defined }}{{ m.n or 'd' }}{{ m.absent | default('e') }}",
    "{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(1, y=3) }}{{ f() }}",
    "{{ m.list | map('string') | join('-') }}{{ m.map | dictsort }}{{ [3, 1] | sort }}{{ 'a' ~ 1 ~ 'b' }}",
    "{{ raise_exception('No ' + 'way.') }}",
    "{{ bos_token }}{{ eos_token }}",
]


def golden(name, source, case):
    case = dict(case)
    line = {"template": name, **case}
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, "eos_token": "<|im_end|>", **case}
    try:
        line["expect"] = _compile_jinja_template(source).render(**variables)
    except TemplateError as error:
        line["error"] = str(error)
    json.dump(line, sys.stdout, ensure_ascii=False)
    print()


for name in FILES:
    for case in CONVERSATIONS:
        golden(name, (ROOT / name).read_text(), case)
for expression in EXPRESSIONS:
    source = "{%- set m = messages[0] -%}" + expression
    golden(source, source, dict(messages=[VALUES]))
