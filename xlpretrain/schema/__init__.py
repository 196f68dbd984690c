"""Config files: parse YAML and `key.sub=value` overrides into typed sections, reporting all mistakes at once.

A section is a frozen pydantic model next to the code that it configures; `xlpretrain.config.run_config` and
`data_pipelines.config` compose them. A renamed field is annotated with its `FormerKey`. Torch-free.
"""

from xlpretrain.schema.former_keys import current_keys
from xlpretrain.schema.overrides import apply_overrides
from xlpretrain.schema.registry import Registry, list_plugins, missing_plugins, plugins_of
from xlpretrain.schema.sections import (
    CountOr,
    FormerKey,
    ItemKey,
    Matching,
    OneOrMany,
    Problem,
    Section,
    TaggedUnion,
)
from xlpretrain.schema.validation import dump, explain, format_value, load, read_section, validate
from xlpretrain.schema.yaml_text import format_problems, parse_yaml, read_yaml

__all__ = [
    "CountOr",
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
    "list_plugins",
    "load",
    "missing_plugins",
    "parse_yaml",
    "plugins_of",
    "read_section",
    "read_yaml",
    "validate",
]
