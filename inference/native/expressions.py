"""C++ expressions of the operations of a `Program`."""

from inference.native.values import BOOL, INT, REAL, Value

EXPRESSIONS = {
    "copy": "{0}", "neg": "-{0}", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
    "gt": "{0} > {1}", "ge": "{0} >= {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "eq": "{0} == {1}",
    "ne": "{0} != {1}", "and": "{0} && {1}", "or": "{0} || {1}", "not": "!{0}", "where": "{0} ? {1} : {2}",
    "max": "ppl_max({0}, {1})", "min": "ppl_min({0}, {1})", "real": "real({0})", "int": "int64_t({0})",
    "bool": "{0} != 0", "isnan": "{0} != {0}", "isinf": "ppl_abs({0}) == HUGE_VAL",
    "isfinite": "ppl_abs({0}) < HUGE_VAL", "rsqrt": "real(1) / ppl_sqrt({0})", "reciprocal": "real(1) / {0}",
    "wrap": "ppl_wrap({0}, {1})", "pow": "real(std::pow({0}, {1}))", "xlogy": "real(ppl_xlogy({0}, {1}))",
    "sign": "ppl_sign({0})", "abs": "ppl_abs({0})", "sqrt": "real(ppl_sqrt({0}))", "round": "real(ppl_round({0}))",
}  # fmt: skip
EXPRESSIONS |= {
    name: f"real(ppl_{name}({{0}}))"
    for name in ("exp", "log", "log1p", "expm1", "tanh", "sigmoid", "lgamma", "digamma")
}
EXPRESSIONS |= {
    name: f"real(std::{name}({{0}}))"
    for name in (
        "sin", "cos", "tan", "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc",
        "floor", "ceil", "trunc", "log2", "log10", "exp2",
    )
}  # fmt: skip
EXPRESSIONS |= {name: f"real(std::{name}({{0}}, {{1}}))" for name in ("atan2", "hypot", "fmax", "fmin", "copysign")}
# Functions of rare.h.
RARE = {name: f"real(ppl_{name}({{0}}))" for name in ("trigamma", "special_erfcx", "erfinv")}
RARE |= {name: f"ppl_{name}({{0}}, {{1}})" for name in ("fmod", "remainder", "div_floor", "div_trunc")}
EXPRESSIONS |= RARE
RARE_CALLS = {"inverse"}
# Loops shorter than a vector call functions instead of holding copies of them, which compiles in half the time.
CALLED = {name: f"real(ppl_{name}_one({{0}}))" for name in ("exp", "log", "log1p", "expm1", "tanh", "sigmoid")}
COMBINES = {
    "sum": "{0} + {1}", "prod": "{0} * {1}", "any": "{0} || {1}", "all": "{0} && {1}",
    "max": "ppl_max({0}, {1})", "min": "ppl_min({0}, {1})",
}  # fmt: skip
_STARTS = {"sum": "0", "prod": "1", "any": "false", "all": "true"}
_LOWEST = {REAL: "-HUGE_VAL", INT: "INT64_MIN", BOOL: "false"}
_HIGHEST = {REAL: "HUGE_VAL", INT: "INT64_MAX", BOOL: "true"}


def start(value: Value) -> str:
    """Write what a reduction, or a buffer that is added to, starts from."""
    if value.op == "max":
        return _LOWEST[value.dtype]
    return _HIGHEST[value.dtype] if value.op == "min" else _STARTS.get(value.op, "0")
