"""The models. To add one, add a file and a line here."""

from typing import Annotated

from xlpretrain.models.backbone import BackboneConfig
from xlpretrain.models.encoder import AlbertConfig, BertConfig
from xlpretrain.models.transformer_xl import TransformerXLConfig
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.schema import Registry, TaggedUnion

MODELS: Registry[BackboneConfig] = Registry(
    "model",
    BackboneConfig,
    {
        "transformer_xl": TransformerXLConfig,
        "xlnet": XLNetConfig,
        "albert": AlbertConfig,
        "bert": BertConfig,
    },
)

AnyModel = Annotated[BackboneConfig, TaggedUnion(MODELS)]
"""The config of any model, selected by its key `type`."""
