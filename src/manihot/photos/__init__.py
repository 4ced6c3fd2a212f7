"""From files to uint8 RGB: decoding, scanning folders, the demo photographs, the store."""
