"""Layers, activations and initializers."""

from treadle.nn import activations as activations
from treadle.nn import initializers as initializers
from treadle.nn.activations import *  # noqa: F403
from treadle.nn.attention import MultiHeadAttention as MultiHeadAttention
from treadle.nn.attention import dot_product_attention as dot_product_attention
from treadle.nn.attention import dot_product_attention_weights as dot_product_attention_weights
from treadle.nn.conv import Conv as Conv
from treadle.nn.conv import ConvTranspose as ConvTranspose
from treadle.nn.dtypes import promote_dtype as promote_dtype
from treadle.nn.embed import Embed as Embed
from treadle.nn.linear import Einsum as Einsum
from treadle.nn.linear import Linear as Linear
from treadle.nn.linear import LinearGeneral as LinearGeneral
from treadle.nn.masks import combine_masks as combine_masks
from treadle.nn.masks import make_attention_mask as make_attention_mask
from treadle.nn.masks import make_causal_mask as make_causal_mask
from treadle.nn.normalization import BatchNorm as BatchNorm
from treadle.nn.normalization import GroupNorm as GroupNorm
from treadle.nn.normalization import InstanceNorm as InstanceNorm
from treadle.nn.normalization import LayerNorm as LayerNorm
from treadle.nn.normalization import RMSNorm as RMSNorm
from treadle.nn.pooling import avg_pool as avg_pool
from treadle.nn.pooling import max_pool as max_pool
from treadle.nn.pooling import min_pool as min_pool
from treadle.nn.stochastic import Dropout as Dropout

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
