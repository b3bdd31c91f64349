"""A Jinja environment in which a template can neither reach Python nor keep the machine busy.

Chat templates come with models from anywhere. Jinja's sandbox keeps them from attributes and callables, but not from
`{% for i in range(99999) %}` nested five deep, from doubling a string sixty times, or from `'%9999999999d' % 1`, and a Python thread
that does one of these cannot be stopped from outside. So every rendering has a budget, and everything that a template can do draws on it:

- Before compiling, GuardingTransformer rewrites the syntax tree: bodies of loops and macros begin with a charge, comparisons are charged,
  literals and `~` are measured.
- Operators, calls, subscripts, filters and tests go through the environment, which charges each and measures its result.
- Operations whose result can be far larger than their operands (`*`, `join`, `replace`, `indent`, ...) are bounded before they are
  carried out; those that no chat template needs (`str.format`, `center`, `lipsum`, ...) do not exist.

So each step is short, the deadline is checked between any two of them, and no value is larger than MAX_VALUE_WEIGHT.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_VALUE_WEIGHT = 8 << 20
"""Characters of a string; of a container 16 per element and the characters in it, counted as often as they occur."""
MAX_WORK = 100_000_000
"""Steps, characters of results and characters of literal text, in one rendering."""
MAX_INT_BITS = 4096
ELEMENT_WEIGHT = 16
MAX_STRIP_CHARACTERS = 256
MAX_INDENT = 64

_STOCK_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int", "items"),
    *("last", "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "title"),
    *("truncate", "unique", "upper", "wordcount"),
)
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit"),
            *("islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix"),
            *("removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
            *("strip", "swapcase", "title", "upper"),
        )
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    range: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}
_PLAIN_TYPES = (str, int, float, bool, type(None), jinja2.Undefined)
_OTHER_THAN_S_AND_D = re.compile(r"%[^sd%]|%$")


class TemplateLimitExceeded(jinja2.TemplateError):
    """The template asked for more than its budget."""


class Budget:
    """What one rendering may still use; every method raises TemplateLimitExceeded."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._ends_at = time.monotonic() + deadline_s
        self._work = 0

    def charge(self, amount: int = 1) -> None:
        self._work += amount
        if self._work > MAX_WORK:
            raise TemplateLimitExceeded(f"it takes more than {MAX_WORK} steps")
        if time.monotonic() > self._ends_at:
            raise TemplateLimitExceeded(f"it takes longer than {self._deadline_s:g} s")

    def bound(self, weight: int) -> None:
        """Refuse a value of this weight before it is made."""
        if weight > MAX_VALUE_WEIGHT:
            raise TemplateLimitExceeded(f"it makes a value of more than {MAX_VALUE_WEIGHT} characters")
        self.charge(weight)


def weigh(value: object) -> int:
    """Weight of a value with all that it contains; stops soon after MAX_VALUE_WEIGHT, however often parts are shared."""
    total, pending = 0, [value]
    while pending and total <= MAX_VALUE_WEIGHT:
        item = pending.pop()
        total += ELEMENT_WEIGHT
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 4
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)
    return total


def is_plain(value: object) -> bool:
    """Whether a value, of bounded weight, is made of strings, numbers, None, lists and dicts only."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, range)):
            pending.extend(item)
        elif not isinstance(item, _PLAIN_TYPES):
            return False
    return True


class GuardingTransformer(NodeTransformer):
    """Inserts calls to the environment where Jinja's compiler makes none."""

    def _call(self, method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=lineno)

    def _charged(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        charge = self._call("charge", [nodes.Const(1 + text, lineno=node.lineno)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        result: nodes.Node = node
        return result

    visit_For = visit_Macro = visit_CallBlock = _charged

    def _measured(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            result: nodes.Node = node
            return result
        return self._call("measured", [node], node.lineno)

    visit_List = visit_Tuple = visit_Dict = visit_Compare = _measured

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("concatenated", list(node.nodes), node.lineno)


class GenerationMarks(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks assistant text for training; here it is just its content."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]  # the base class declares it without ClassVar

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def _finalize(context: Context, value: object) -> str:
    environment = context.environment
    assert isinstance(environment, GuardedEnvironment)
    text = environment.text_of(value)
    environment.budget.charge(len(text))
    return text


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one rendering. Whitespace is controlled as transformers does it: trim_blocks and lstrip_blocks."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self, deadline_s: float) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            cache_size=0,
            extensions=["jinja2.ext.loopcontrols", GenerationMarks],
        )
        self.budget = Budget(deadline_s)
        del self.globals["lipsum"]
        filters: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _STOCK_FILTERS}
        filters |= self._own_filters()
        tests: Mapping[str, Any] = self.tests
        self.filters = {name: self._guarded(function) for name, function in filters.items()}
        self.tests = {name: self._guarded(function) for name, function in tests.items()}

    def _own_filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "indent": self._indent,
            "join": self._join,
            "list": self._list,
            "replace": self._replace,
            "round": self._round,
            "safe": self.text_of,
            "string": self.text_of,
            "sum": self._sum,
            "tojson": self._tojson,
            "trim": self._trim,
        }

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # `wraps` also copies the mark by which Jinja passes the context or environment first.
        @functools.wraps(function)
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            self.charge()
            return self.measured(function(*arguments, **keywords))

        return guarded

    def compile_guarded(self, source: str) -> CodeType:
        """Code of a template, for `render_chunks` of this or any other GuardedEnvironment."""
        tree = GuardingTransformer().visit(self.parse(source))
        return self.compile(tree)

    def render_chunks(self, code: CodeType, variables: Mapping[str, object]) -> Iterable[str]:
        """The output, piece by piece. Raises what templates raise: see `chat_template`."""
        return jinja2.Template.from_code(self, code, self.make_globals(None)).generate(variables)

    def charge(self, amount: int = 1) -> None:
        self.budget.charge(amount)

    def measured(self, value: Any) -> Any:
        """The value itself, if it is not too large."""
        self.budget.bound(weigh(value))
        return value

    def text_of(self, value: object) -> str:
        """`str` of plain values; others have no text that a prompt could need, and theirs could be of any length."""
        if isinstance(value, str):
            return value
        self.measured(value)
        if not is_plain(value):
            raise jinja2.TemplateRuntimeError(f"it prints a {type(value).__name__}")
        return str(value)

    def concatenated(self, *values: object) -> str:
        texts = [self.text_of(value) for value in values]
        self.budget.bound(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            self.budget.bound(weigh(left) + weigh(right))
        elif operator == "*":
            self._bound_product(left, right)
        elif operator == "**":
            self._bound_power(left, right)
        elif isinstance(left, str):
            self._bound_formatting(left, right)
        return self.measured(super().call_binop(context, operator, left, right))

    def _bound_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._bound_bits(left.bit_length() + right.bit_length())
        elif isinstance(left, int):
            self.budget.bound(max(left, 0) * weigh(right))
        elif isinstance(right, int):
            self.budget.bound(max(right, 0) * weigh(left))

    def _bound_power(self, base: Any, exponent: Any) -> None:
        if isinstance(base, int) and isinstance(exponent, int):
            self._bound_bits(base.bit_length() * abs(exponent))

    def _bound_bits(self, bits: int) -> None:
        if bits > MAX_INT_BITS:
            raise TemplateLimitExceeded(f"it makes an integer of more than {MAX_INT_BITS} bits")

    def _bound_formatting(self, text: str, arguments: object) -> None:
        if _OTHER_THAN_S_AND_D.search(text.replace("%%", "")):
            raise jinja2.TemplateRuntimeError("it formats with something other than %s and %d")
        self.measured(arguments)
        if not is_plain(arguments):
            raise jinja2.TemplateRuntimeError(f"it formats a {type(arguments).__name__}")

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.charge()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.charge()
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format` at all: a field width makes output of any length."""
        return

    # Positional-only in effect, as in the base class, so that templates may use any keyword.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.charge()
        owner, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            args = __self._bounded_arguments(owner, method, args)
        return __self.measured(super().call(__context, __obj, *args, **kwargs))

    def _bounded_arguments(self, owner: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if method == "join" and len(arguments) == 1:
            return (self._bounded_parts(arguments[0], owner),)
        if method == "replace" and len(arguments) >= 2:
            self._bound_replacement(owner, *arguments[:2])
        if method in {"strip", "lstrip", "rstrip"} and arguments:
            self._bound_strip(arguments[0])
        return arguments

    def _bounded_parts(self, values: Iterable[Any], separator: str) -> list[str]:
        parts: list[str] = []
        total = 0
        for value in values:
            self.charge()
            parts.append(self.text_of(value))
            total += len(parts[-1]) + len(separator)
            if total > MAX_VALUE_WEIGHT:
                break
        self.budget.bound(total)
        return parts

    def _bound_replacement(self, text: str, old: object, new: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.budget.bound(len(text) + text.count(old) * len(new))

    def _bound_strip(self, characters: object) -> None:
        if isinstance(characters, str) and len(characters) > MAX_STRIP_CHARACTERS:
            raise TemplateLimitExceeded(f"it strips more than {MAX_STRIP_CHARACTERS} different characters")

    def _counted(self, values: Iterable[Any]) -> Iterable[Any]:
        for value in values:
            self.charge()
            yield value

    def _list(self, values: Iterable[Any]) -> list[Any]:
        return list(self._counted(values))

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = values if attribute is None else (self.getitem(value, attribute) for value in values)
        separator = self.text_of(d)
        return separator.join(self._bounded_parts(items, separator))

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        total = start
        for value in self._counted(values):
            item = value if attribute is None else self.getitem(value, attribute)
            self.budget.bound(weigh(total) + weigh(item))
            total = total + item
        return total

    def _replace(self, text: object, old: str, new: str, count: int | None = None) -> str:
        subject = self.text_of(text)
        self._bound_replacement(subject, old, new)
        return subject.replace(old, new, -1 if count is None else count)

    def _trim(self, text: object, chars: str | None = None) -> str:
        self._bound_strip(chars)
        return self.text_of(text).strip(chars)

    def _indent(self, text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """As Jinja's, with a bounded width."""
        subject, prefix = self.text_of(text), " " * min(width, MAX_INDENT + 1) if isinstance(width, int) else width
        if len(prefix) > MAX_INDENT:
            raise TemplateLimitExceeded(f"it indents by more than {MAX_INDENT} characters")
        lines = subject.splitlines() if not subject.endswith("\n") else [*subject.splitlines(), ""]
        self.budget.bound(len(subject) + len(lines) * len(prefix))
        indented = [line if not line and not blank else prefix + line for line in lines[1:]]
        return "\n".join([prefix + lines[0] if first else lines[0], *indented]) if lines else prefix if first else ""

    def _round(self, value: float, precision: int = 0, method: str = "common") -> float:
        if not isinstance(precision, int) or not -20 <= precision <= 20:
            raise TemplateLimitExceeded("it rounds to more than 20 digits")
        stock: Callable[..., float] = FILTERS["round"]
        return stock(value, precision, method)

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON, as transformers defines it; Jinja's own escapes HTML."""
        self.measured(value)
        if (indent is not None and (not isinstance(indent, int) or indent > 16)) or (separators is not None and weigh(separators) > 64):
            raise TemplateLimitExceeded("it indents JSON by more than 16 spaces, or separates it by long texts")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
