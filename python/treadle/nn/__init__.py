"""Layers, activations and initializers."""

from typing import TYPE_CHECKING

from treadle._public import later
from treadle.nn import activations as activations
from treadle.nn.activations import *  # noqa: F403

if TYPE_CHECKING:
    from treadle.nn import initializers as initializers
    from treadle.nn._attention import MultiHeadAttention as MultiHeadAttention
    from treadle.nn._attention import dot_product_attention as dot_product_attention
    from treadle.nn._attention import dot_product_attention_weights as dot_product_attention_weights
    from treadle.nn._conv import Conv as Conv
    from treadle.nn._conv import ConvTranspose as ConvTranspose
    from treadle.nn._dtypes import promote_dtype as promote_dtype
    from treadle.nn._embed import Embed as Embed
    from treadle.nn._linear import Einsum as Einsum
    from treadle.nn._linear import Linear as Linear
    from treadle.nn._linear import LinearGeneral as LinearGeneral
    from treadle.nn._masks import combine_masks as combine_masks
    from treadle.nn._masks import make_attention_mask as make_attention_mask
    from treadle.nn._masks import make_causal_mask as make_causal_mask
    from treadle.nn._normalization import BatchNorm as BatchNorm
    from treadle.nn._normalization import GroupNorm as GroupNorm
    from treadle.nn._normalization import InstanceNorm as InstanceNorm
    from treadle.nn._normalization import LayerNorm as LayerNorm
    from treadle.nn._normalization import RMSNorm as RMSNorm
    from treadle.nn._pooling import avg_pool as avg_pool
    from treadle.nn._pooling import max_pool as max_pool
    from treadle.nn._pooling import min_pool as min_pool
    from treadle.nn._stochastic import Dropout as Dropout

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Einsum",
    "Embed",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Linear",
    "LinearGeneral",
    "MultiHeadAttention",
    "RMSNorm",
    "activations",
    "avg_pool",
    "combine_masks",
    "dot_product_attention",
    "dot_product_attention_weights",
    "initializers",
    "make_attention_mask",
    "make_causal_mask",
    "max_pool",
    "min_pool",
    "promote_dtype",
]
__all__ += activations.__all__

if not TYPE_CHECKING:
    __getattr__, __dir__ = later(
        __name__,
        __all__,
        {
            "initializers": ("initializers",),
            "_attention": (
                "MultiHeadAttention",
                "dot_product_attention",
                "dot_product_attention_weights",
            ),
            "_conv": ("Conv", "ConvTranspose"),
            "_dtypes": ("promote_dtype",),
            "_embed": ("Embed",),
            "_linear": ("Einsum", "Linear", "LinearGeneral"),
            "_masks": ("combine_masks", "make_attention_mask", "make_causal_mask"),
            "_normalization": ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"),
            "_pooling": ("avg_pool", "max_pool", "min_pool"),
            "_stochastic": ("Dropout",),
        },
    )
