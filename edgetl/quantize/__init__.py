"""Files of lower precision than fp32: made, read back, repaired and chosen from. [host: onnx]"""
