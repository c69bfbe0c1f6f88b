"""Recorded graphs as native code: no Python, no torch and no interpreter lock while it runs."""

from inference.native.compiler import CompileFailed, NoCompiler
from inference.native.function import NativeFunction, NotWorthIt, compile_graph
from inference.native.values import Unsupported

__all__ = ["CompileFailed", "NativeFunction", "NoCompiler", "NotWorthIt", "Unsupported", "compile_graph"]
