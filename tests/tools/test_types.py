"""How many parameters have a type that says nothing."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "tpusd"
MOST = 10


def any_parameters(source):
    """The parameters that are annotated Any, and nothing more."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            own = function.args
            for parameter in [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]:
                if parameter is not None and parameter.annotation is not None:
                    if ast.unparse(parameter.annotation) == "Any":
                        yield f"{function.name}({parameter.arg})"


def test_few_parameters_are_of_any_type():
    found = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in PACKAGE.rglob("*.py")
        for name in any_parameters(file.read_text())
    ]
    assert len(found) <= MOST, found


def test_every_form_of_a_parameter_is_seen():
    source = "def f(a: Any, /, b: Any, *c: Any, d: Any = 1, **e: Any): ...\nasync def g(a: list[Any], b, c: Any): ...\n"
    assert len(list(any_parameters(source))) == 6
