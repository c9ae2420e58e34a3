"""Layers, activations and initializers."""

from weft.nn import activations as activations
from weft.nn import initializers as initializers
from weft.nn.activations import *  # noqa: F403
from weft.nn.attention import MultiHeadAttention as MultiHeadAttention
from weft.nn.attention import dot_product_attention as dot_product_attention
from weft.nn.attention import dot_product_attention_weights as dot_product_attention_weights
from weft.nn.conv import Conv as Conv
from weft.nn.conv import ConvTranspose as ConvTranspose
from weft.nn.dtypes import promote_dtype as promote_dtype
from weft.nn.embed import Embed as Embed
from weft.nn.linear import Einsum as Einsum
from weft.nn.linear import Linear as Linear
from weft.nn.linear import LinearGeneral as LinearGeneral
from weft.nn.masks import combine_masks as combine_masks
from weft.nn.masks import make_attention_mask as make_attention_mask
from weft.nn.masks import make_causal_mask as make_causal_mask
from weft.nn.normalization import BatchNorm as BatchNorm
from weft.nn.normalization import GroupNorm as GroupNorm
from weft.nn.normalization import InstanceNorm as InstanceNorm
from weft.nn.normalization import LayerNorm as LayerNorm
from weft.nn.normalization import RMSNorm as RMSNorm
from weft.nn.pooling import avg_pool as avg_pool
from weft.nn.pooling import max_pool as max_pool
from weft.nn.pooling import min_pool as min_pool
from weft.nn.stochastic import Dropout as Dropout

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
