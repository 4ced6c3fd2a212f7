"""Networks in torch: backbones, heads, pretrained weights, saved weights."""
