"""Configuration files: YAML and `key.sub=value` overrides into typed sections, every mistake in one report.

A section is a frozen pydantic model that lives beside the code it configures; `xlpretrain.config.run_config` and
`data_pipelines.config` compose them. A renamed field is annotated with its `FormerKey`. Torch-free.
"""

from xlpretrain.schema.former_keys import current_keys
from xlpretrain.schema.overrides import apply_overrides
from xlpretrain.schema.registry import Registry
from xlpretrain.schema.sections import FormerKey, ItemKey, Matching, OneOrMany, Problem, Section, TaggedUnion
from xlpretrain.schema.validation import dump, explain, format_value, load, read_section, validate
from xlpretrain.schema.yaml_text import format_problems, parse_yaml, read_yaml

__all__ = [
    "FormerKey",
    "ItemKey",
    "Matching",
    "OneOrMany",
    "Problem",
    "Registry",
    "Section",
    "TaggedUnion",
    "apply_overrides",
    "current_keys",
    "dump",
    "explain",
    "format_problems",
    "format_value",
    "load",
    "parse_yaml",
    "read_section",
    "read_yaml",
    "validate",
]
