"""Chat templates of strangers: what usual ones need works, and what hostile ones try does not."""

from __future__ import annotations

import pytest

from astra_mesh import limits
from astra_mesh.web.sandbox import TemplateFault, compile_template

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ 1 }}"}]
CHATML = (
    "{%- for m in messages %}\n"
    "    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(source: str) -> str:
    return compile_template(source).render(messages=MESSAGES, add_generation_prompt=True)


def test_a_usual_template() -> None:
    assert render(CHATML) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ 1 }}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "system"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}", "x"),
        ("{{ {'a': '<&>'} | tojson }}", '{"a": "<&>"}'),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 * 2 % 4 %}{{ ns.n }}", "2"),
        ("{{ '-' * 10 }}", "----------"),
        ("{{ messages[1:] | length }}{{ 'ab'.upper().startswith('A') }}", "1True"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("{{ tools is defined and tools }}{{ '%s!' | format('x') }}", "Falsex!"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source) == text


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__ }}{{ ().__class__.__base__.__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "changing what it is given": "{{ messages.append(1) }}",
    "long loops": "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "a long text": "{{ 'x' * 1000000000 }}",
    "a long list": "{{ [1] * 1000000000 }}",
    "a big power": "{{ 9 ** 999999999 }}",
    "padding": "{{ 'x'.ljust(1000000000) }}",
    "a padding filter": "{{ 'x' | center(1000000000) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format filter": "{{ '%1000000000d' | format(1) }}",
    "a format method": "{{ '{:1000000000}'.format(1) }}",
    "much output": "{% for a in range(9999) %}{{ '-' * 999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wrong types": "{{ 1 + 'x' }}",
    "no such thing": "{{ messages[0].a.b }}",
    "a refusal": "{{ raise_exception('only user and assistant') }}",
    "no template": "{% for %}",
    "files": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_by_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHAT_TEMPLATE_S", 0.2)
    with pytest.raises(TemplateFault) as fault:
        render(HOSTILE[name])
    assert 0 < len(str(fault.value)) < 300


def test_the_template_s_own_words_are_told() -> None:
    with pytest.raises(TemplateFault, match="only user and assistant"):
        render(HOSTILE["a refusal"])


def test_a_huge_template_is_not_read() -> None:
    with pytest.raises(TemplateFault, match="characters"):
        compile_template("x" * (limits.CHAT_TEMPLATE_BYTES + 1))
