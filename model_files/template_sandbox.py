"""The Jinja environment of chat templates: out of reach of Python, and aware of who wrote what in a prompt.

Chat templates come with models from anywhere. Jinja's sandbox keeps them from attributes and callables; what they may cost is bounded by
the process they run in (`template_process`).

Special tokens count only where the template wrote them. So all texts of a client are of class Content, and stay of it through whatever
takes them apart: methods, filters, subscripts. Where one becomes a part of a text that the template writes, when it is printed, joined or
formatted, the special texts in it are broken (`special_texts`). A template that looks at a client's text sees it without marks.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, ClassVar, SupportsIndex

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from dairllm.model_files.special_texts import SpecialTexts

_NO_FILTERS = ("pprint", "random", "urlize", "xmlattr")
_CHOOSING_FILTERS = ("default", "d")
_INSERTING_METHODS = frozenset(("center", "join", "ljust", "replace", "rjust"))
_PLAIN_TYPES = (str, int, float, bool, type(None), jinja2.Undefined)


class Content(str):
    """Text that a client wrote, or a part of it."""

    __slots__ = ()

    def __getitem__(self, index: SupportsIndex | slice) -> "Content":
        return Content(super().__getitem__(index))

    def __iter__(self) -> Iterator["Content"]:
        return map(Content, super().__iter__())


def as_content(value: Any) -> Any:
    """A JSON-like value with its texts as Content, keys too. Half surrogate pairs, which are no characters, become U+FFFD."""
    if isinstance(value, str):
        return Content(value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    if isinstance(value, dict):
        return {as_content(key): as_content(item) for key, item in value.items()}
    return [as_content(item) for item in value] if isinstance(value, list) else value


def has_content(value: object) -> bool:
    """Whether any text in a plain value is Content."""
    return any(isinstance(item, Content) for item in _items_within(value))


def is_plain(value: object) -> bool:
    """Whether a value is made of strings, numbers, None, lists and dicts only."""
    return all(isinstance(item, _PLAIN_TYPES) for item in _items_within(value))


def _items_within(value: object) -> Iterator[object]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, (list, tuple, range)):
            pending += item
        else:
            yield item


class _ConcatenationCalls(NodeTransformer):
    """`~` becomes a call, since Jinja's compiler asks the environment about all operators but this one."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("concatenated"), list(node.nodes), [], None, None, lineno=node.lineno)


class GenerationMarks(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks assistant text for training; here it is just its content."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]  # the base class declares it without ClassVar

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Whitespace is controlled as transformers does it: trim_blocks and lstrip_blocks."""

    intercepted_binops = frozenset(("+", "*", "%"))

    def __init__(self, control_texts: Iterable[str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self.printed,
            cache_size=0,
            extensions=["jinja2.ext.loopcontrols", GenerationMarks],
        )
        self._control = SpecialTexts(control_texts)
        del self.globals["lipsum"]
        stock: Mapping[str, Callable[..., Any]] = FILTERS
        kept = {name: function for name, function in stock.items() if name not in _NO_FILTERS}
        self.filters = {name: function if name in _CHOOSING_FILTERS else self._derived(function) for name, function in kept.items()}
        self.filters |= {"join": self._join, "safe": self._text, "string": self._text, "sum": self._sum, "tojson": self._tojson}

    def compile_template(self, source: str) -> CodeType:
        tree = _ConcatenationCalls().visit(self.parse(source))
        return self.compile(tree)

    def variables_of(self, source: str) -> set[str]:
        """Names of the variables that it reads and does not set."""
        return find_undeclared_variables(self.parse(source)) - self.globals.keys()

    def render_chunks(self, code: CodeType, variables: Mapping[str, object]) -> Iterable[str]:
        """The output, piece by piece, with the marks of `special_texts`. Raises whatever expressions on plain values can raise."""
        return jinja2.Template.from_code(self, code, self.make_globals(None)).generate(variables)

    def written(self, value: Any) -> Any:
        """A value as it may stand in a text of the template's: the text of a client, or of a container, with its special texts broken."""
        if isinstance(value, (Content, list, tuple, dict)):
            return self._control.broken(str(value))
        return value

    def printed(self, value: object) -> str:
        """Text of a plain value; others have no text that a prompt could need, and theirs would tell about Python."""
        if not is_plain(value):
            raise jinja2.TemplateRuntimeError(f"it prints a {type(value).__name__}")
        return str(self.written(value))

    def concatenated(self, *values: object) -> str:
        texts = [value if isinstance(value, str) else self.printed(value) for value in values]
        return self._joined(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self._joined((left, right))
        if operator == "%" and isinstance(left, str) and not isinstance(left, Content):
            right = tuple(map(self.written, right)) if isinstance(right, tuple) else self._written_arguments(right)
        result = super().call_binop(context, operator, left, right)
        return Content(result) if isinstance(result, str) and (isinstance(left, Content) or isinstance(right, Content)) else result

    def _written_arguments(self, value: Any) -> Any:
        return {key: self.written(item) for key, item in value.items()} if isinstance(value, dict) else self.written(value)

    def _joined(self, texts: Sequence[str]) -> str:
        """A client's texts with nothing but white space between them are one text of the client's."""
        if any(isinstance(text, Content) for text in texts) and all(isinstance(text, Content) or not text.strip() for text in texts):
            return Content("".join(texts))
        return "".join(map(self.written, texts))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or isinstance(value.__self__, Content):
            return wrapped
        inner = wrapped

        @functools.wraps(inner)
        def formatted(*arguments: Any, **keywords: Any) -> str:
            return inner(*map(self.written, arguments), **{name: self.written(item) for name, item in keywords.items()})

        return formatted

    # Positional-only in effect, as in the base class, so that templates may use any keyword.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and not isinstance(owner, Content) and method in _INSERTING_METHODS:
            if method == "join" and len(args) == 1:
                return __self._join(args[0], owner)
            args = tuple(map(__self.written, args))
        result = super().call(__context, __obj, *args, **kwargs)
        return _all_content(result) if isinstance(owner, Content) else result

    def _derived(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose result is a client's text if what it is applied to is."""
        place = 1 if hasattr(function, "jinja_pass_arg") else 0

        # `wraps` also copies the mark by which Jinja passes the context or environment first.
        @functools.wraps(function)
        def derived(*arguments: Any, **keywords: Any) -> Any:
            subject = arguments[place] if len(arguments) > place else None
            if isinstance(subject, Content):
                return _all_content(function(*arguments, **keywords))
            if isinstance(subject, str):
                others = map(self.written, arguments[place + 1 :])
                keywords = {name: self.written(item) for name, item in keywords.items()}
                arguments = (*arguments[: place + 1], *others)
            result = function(*arguments, **keywords)
            if isinstance(result, str):
                return Content(result) if has_content(subject) else str(result)
            return result

        return derived

    def _text(self, value: object) -> str:
        if isinstance(value, str):
            return value
        return Content(value) if has_content(value) else self.printed(value)

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = values if attribute is None else (self.getitem(value, attribute) for value in values)
        texts: list[str] = []
        for item in items:
            texts += [d, item if isinstance(item, str) else self.printed(item)]
        return self._joined(texts[1:])

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        total = start
        for value in values:
            item = value if attribute is None else self.getitem(value, attribute)
            total = self._joined((total, item)) if isinstance(total, str) and isinstance(item, str) else total + item
        return total

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON, as transformers defines it; Jinja's own escapes HTML."""
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return Content(text) if has_content(value) else text


def _all_content(value: Any) -> Any:
    """What was made from a client's text: a text, or several."""
    if isinstance(value, str):
        return Content(value)
    return type(value)(map(_all_content, value)) if isinstance(value, (list, tuple)) else value
