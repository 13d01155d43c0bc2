"""The mutants of a module: cosmic-ray's of operators, numbers, conditions and loops; ours of what may be forgotten."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

# of the many replacements of an operator, those that change least
_BINARY = ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Div_Mul", "Mod_Mul", "Pow_Mul", "RShift_LShift")
_BINARY += ("BitOr_BitAnd", "BitAnd_BitOr")
_COMPARED = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in _BINARY),
    *(f"ReplaceComparisonOperator_{pair}" for pair in _COMPARED),
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
)


@dataclass(frozen=True)
class Mutant:
    name: str  # the operator, and which of its places
    source: str
    change: str  # the lines that differ


def mutants(source: str, functions: Sequence[str] = ()) -> list[Mutant]:
    """All mutants of `source` that compute something else, each once; only inside `functions` if they are named.

    Annotations, docstrings and messages are left out.
    """
    original = ast.parse(source)
    seen, found = {_computed(original)}, []
    plain = ast.unparse(original)
    for name, mutated in (*_by_cosmic_ray(source), *_forgetting(original)):
        try:
            tree = ast.parse(mutated)
        except SyntaxError:
            continue
        computed = _computed(tree)
        if computed in seen or (functions and _outside(tree, functions) != _outside(original, functions)):
            continue
        seen.add(computed)
        found.append(Mutant(name, mutated, _difference(plain, ast.unparse(tree))))
    return found


def _by_cosmic_ray(source: str) -> Iterator[tuple[str, str]]:
    provider = OperatorProvider()
    for name in OPERATORS:
        place = 0
        while (mutated := mutate_code(source, provider[name](), place)) is not None:
            yield f"{name}/{place}", mutated
            place += 1


def _forgetting(original: ast.Module) -> Iterator[tuple[str, str]]:
    """Without a statement that acts, a keyword argument, or an element of a tuple, list, set or dict."""
    needed = _needed(original)
    for place, node in enumerate(ast.walk(original)):
        for part in range(len(_parts(node)) if id(node) not in needed else 0):
            tree = copy.deepcopy(original)
            same = next(each for index, each in enumerate(ast.walk(tree)) if index == place)
            remove = _parts(same)[part]
            remove()
            yield f"Forget/{place}.{part}", ast.unparse(ast.fix_missing_locations(tree))


def _needed(tree: ast.Module) -> set[int]:
    """Tuples whose elements are all named where they are taken apart, or that belong to a type: no test is needed."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
            found.add(id(node.value))
        elif isinstance(node, ast.Subscript):
            found.add(id(node.slice))
    return found


def _parts(node: ast.AST) -> list:
    """What may be taken out of `node`, each as a function that does it."""
    if isinstance(node, ast.Call):
        forgotten = [i for i, keyword in enumerate(node.keywords) if keyword.arg != "device"]  # there is one only
        return [lambda i=i: node.keywords.pop(i) for i in forgotten]
    if isinstance(node, ast.Tuple | ast.List | ast.Set) and not isinstance(getattr(node, "ctx", None), ast.Store):
        return [lambda i=i: node.elts.pop(i) for i in range(len(node.elts))] if len(node.elts) > 1 else []
    if isinstance(node, ast.Dict):
        return [lambda i=i: (node.keys.pop(i), node.values.pop(i)) for i in range(len(node.keys))]
    found = []
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(node, block, None)
        for i, statement in enumerate(statements if isinstance(statements, list) else ()):
            if _acts(statement):
                found.append(lambda i=i, statements=statements: statements.__setitem__(i, ast.Pass()))
    return found


def _acts(statement: ast.AST) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    assigns_place = isinstance(statement, ast.Assign) and not isinstance(statement.targets[0], ast.Name | ast.Tuple)
    return assigns_place or isinstance(statement, ast.AugAssign | ast.Raise | ast.Delete)


_TASTE = {"example", "title"}  # of a method: settings for a quick check, where others would do, and words


class _Computing(ast.NodeTransformer):
    """Takes out what computes nothing: annotations, docstrings, the words of messages, matters of taste."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return ast.Pass() if names & _TASTE else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args = []
        return node


def _computed(tree: ast.Module) -> str:
    return ast.dump(_Computing().visit(copy.deepcopy(tree)))


def _outside(tree: ast.Module, functions: Sequence[str]) -> str:
    """All but the bodies of the functions named."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            node.body = []
    return ast.dump(tree)


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
