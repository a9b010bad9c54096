"""What an app imports: `load(bundle).predict(x)` [no torch, no pydantic, no onnx]."""

from edgetl.runtime.model import Model, Prediction, load

__all__ = ["Model", "Prediction", "load"]
