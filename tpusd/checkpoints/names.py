"""The names that published files use, mapped to the dotted paths of our modules: the whole table.

Module attributes carry the PyTorch state-dict names, so a row stands here only where a published name differs from
that. Knows no shapes; the leaf's transform follows the destination's type and stands in `fill`.
"""

import re

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

# (parts, layout or None for both, pattern, replacement), applied in order to the whole name.
_LISTS = "down_blocks|up_blocks|attentions|resnets|transformer_blocks|downsamplers|upsamplers|to_out|net"
_RENAMED = tuple(
    (parts, layout, re.compile(pattern), replacement)
    for parts, layout, pattern, replacement in (
        # transformers 5 saves CLIP without the prefix that earlier versions and every published file have.
        (TEXT_ENCODERS, None, r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),
        # The autoencoder's attention before diffusers 0.17: the spelling of SD 1.x and 2.x as published.
        (("vae",), None, r"\.attentions([._]\d+)\.query\.", r".attentions\1.to_q."),
        (("vae",), None, r"\.attentions([._]\d+)\.key\.", r".attentions\1.to_k."),
        (("vae",), None, r"\.attentions([._]\d+)\.value\.", r".attentions\1.to_v."),
        (("vae",), None, r"\.attentions([._]\d+)\.proj_attn\.", r".attentions\1.to_out.0."),
        # Flax writes list entries as attributes: down_blocks_0. (linear_1 is a name, not an entry.)
        (("unet", "vae"), "flax", rf"(^|\.)({_LISTS})_(\d+)(?=\.)", r"\1\2.\3"),
        # Flax calls a norm's and an embedding's leaf otherwise.
        (None, "flax", r"\.(scale|embedding|kernel)$", ".weight"),
    )
)

# (parts, pattern, reason): tensors that are stored and have no use here.
_IGNORED = ((TEXT_ENCODERS, re.compile(r"(^|\.)embeddings\.position_ids$"), "positions are counted, not read"),)


def destination_name(part: str, layout: str, name: str) -> str:
    """A stored tensor's name -> the dotted path of our parameter, with PyTorch's leaf (`weight` or `bias`)."""
    for parts, only, pattern, replacement in _RENAMED:
        if (parts is None or part in parts) and only in (None, layout):
            name = pattern.sub(replacement, name)
    return name


def ignored_reason(part: str, name: str) -> str | None:
    """Why a stored tensor is not used; None if it must be."""
    for parts, pattern, reason in _IGNORED:
        if part in parts and pattern.search(name):
            return reason
    return None
