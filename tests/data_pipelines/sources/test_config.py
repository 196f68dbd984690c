"""Templates: all that a user may write between the braces."""

import pytest

from data_pipelines.sources.config import JsonlSource
from xlpretrain.errors import ConfigError
from xlpretrain.schema import validate


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{text}", "a b"),
        ("{text}\n\n{{{ti-tle}}}", "a b\n\n{T}"),
        ("{text:s}|{text!s:>5}|{text:*^7.1}|{text:.1s}|{text:05}", "a b|  a b|***a***|a|a b00"),
        ("{text!r} {text!a}", "'a b' 'a b'"),
    ],
)
def test_templates_that_format_text_are_taken(template: str, text: str):
    source = validate(JsonlSource, {"path": "x", "template": template}, "test")
    assert source.text_of({"text": "a b", "ti-tle": "T"}, str) == text


@pytest.mark.parametrize(
    "template",
    [
        *("{text:d}", "{text:,}", "{text:+}", "{text:=5}", "{text:%Y}", "{text:.2f}", "{text:{width}}", "{text:#x}"),
        *("{text:99999999999}", "{text:.99999999999999999999}", "{text!x}", "{text!d:5}"),
    ],
)
def test_formats_of_anything_but_text_are_refused(template: str):
    with pytest.raises(
        ConfigError, match=r"template .*not a string format, but all fields are strings; write \{text\}"
    ):
        validate(JsonlSource, {"path": "x", "template": template}, "test")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text", "invalid template: expected '}' before end of string; write a literal brace as {{"),
        ("text}", "invalid template: Single '}' encountered in format string; write a literal brace as {{"),
        ("{text!}", "invalid template: "),
        ("text", "expected named fields"),
        ("", "expected named fields"),
        ("{}", "expected named fields"),
        ("{0}", "expected named fields"),
        ("{text.upper}", "expected named fields"),
        ("{text[0]}", "expected named fields"),
        ("{te xt}", "expected named fields"),
    ],
)
def test_what_is_no_template_is_refused(template: str, message: str):
    with pytest.raises(ConfigError) as error:
        validate(JsonlSource, {"path": "x", "template": template}, "test")
    assert message in str(error.value)
