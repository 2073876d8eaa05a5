"""Dataclasses with a configuration: every parameter is declared once, as a field.

Kernels and rates are frozen dataclasses.  The annotation of each field holds a `Parameter`,
and the constructor's checks, configurations, text such as "Window(3, every=2)" and durations
are derived from it:

>>> @dataclasses.dataclass(frozen=True)
... class Ramp(Configurable):
...     family = "shape"
...     steps: PositiveSteps
...     height: Annotated[float, Parameter(values.number(above=0))] = 1.0
>>> shapes = Family("shape", "Ramp(steps=3)", Ramp)
>>> shapes.from_text("Ramp(3, height=2)").get_config()
{'shape': 'Ramp', 'steps': 3, 'height': 2.0}
>>> shapes.from_config({"shape": "Ramp", "steps": 0})
Traceback (most recent call last):
    ...
ValueError: `steps` must be an integer of at least 1. Received: steps=0
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from tf_lrtraj import values

__all__ = [
    "Configurable",
    "Declared",
    "Family",
    "Parameter",
    "PositiveSteps",
    "Steps",
    "is_config",
    "parameters",
]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration in the annotation of a field.

    Attributes:
        check: a rule, or a function that returns the stored value or raises ValueError.
        counts_steps: whether the value may also be given as a duration.
        name: its name in calls and configurations; by default that of the field.
    """

    check: values.Rule | Callable[[Any], Any]
    counts_steps: bool = False
    name: str = ""


Steps = Annotated[int, Parameter(values.integer(0), counts_steps=True)]
PositiveSteps = Annotated[int, Parameter(values.integer(1), counts_steps=True)]


@dataclasses.dataclass(frozen=True)
class Declared:
    """A parameter together with the field that holds it."""

    parameter: Parameter
    field: dataclasses.Field[Any]

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.field.default is dataclasses.MISSING

    def read(self, name: str, value: Any) -> Any:
        """Returns the stored form of `value`; raises ValueError if it is not allowed."""
        check = self.parameter.check
        return check.check(name, value) if isinstance(check, values.Rule) else check(value)


_PARAMETERS: dict[type[Any], dict[str, Declared]] = {}  # found so far


def parameters(cls: type[Any]) -> dict[str, Declared]:
    """Returns the parameters of a class by name, in the order of its constructor."""
    if cls not in _PARAMETERS:
        hints = get_type_hints(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        found = {}
        for field in sorted(fields, key=lambda field: bool(field.kw_only)):
            (parameter,) = hints[field.name].__metadata__
            found[parameter.name or field.name] = Declared(parameter, field)
        _PARAMETERS[cls] = found
    return _PARAMETERS[cls]


class Configurable:
    """Base of frozen dataclasses whose fields are annotated with a `Parameter`.

    Attributes:
        family: the key of a configuration that names the class.
        left_out: parameters that a configuration omits if they have their default.
    """

    family: ClassVar[str]
    left_out: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, declared in parameters(type(self)).items():
            field = declared.field.name
            object.__setattr__(self, field, declared.read(name, getattr(self, field)))
        self._check()

    def _check(self) -> None:
        """Checks the parameters against each other."""

    def get_config(self) -> dict[str, Any]:
        """Returns a JSON-serialisable configuration, from which `from_config` makes an equal
        object."""
        config: dict[str, Any] = {self.family: type(self).__name__}
        for name, declared in parameters(type(self)).items():
            value = getattr(self, declared.field.name)
            if name not in self.left_out or value != declared.field.default:
                config[name] = _plain(value)
        return config


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return value.get_config()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def is_config(value: Any) -> bool:
    """Returns whether `value` is a dict or an `ml_collections.ConfigDict`."""
    return hasattr(value, "keys")


Member = TypeVar("Member", bound=Configurable)


class Family(dict[str, type[Member]]):
    """Classes by name, from which a configuration or a text selects one.

    Args:
        key: the key of a configuration that names the class.
        example: an example of the text form.
        classes: the members.
    """

    def __init__(self, key: str, example: str, *classes: type[Member]) -> None:
        super().__init__({cls.__name__: cls for cls in classes})
        self.key, self.example = key, example

    def from_config(self, config: Mapping[str, Any]) -> Member:
        """Builds a member from `{key: name, **arguments}`.

        Raises:
            ValueError: if the name or an argument is unknown or missing (close names are
                suggested), or a value is out of range.
        """
        if not is_config(config):
            example = f'{{"{self.key}": "{next(iter(self))}", …}}'
            raise values.error(self.key, f"a configuration such as {example}", config)
        arguments = {str(key): config[key] for key in config.keys()}  # noqa: SIM118  # ConfigDict
        return self._build(arguments.pop(self.key, None), arguments)

    def from_text(self, text: str) -> Member:
        """Builds a member from text such as "Window(3, every=2)"; nothing is evaluated.

        Raises:
            ValueError: if it is not a name with plain arguments, or as `from_config`.
        """
        name, positional, named = self._call(text)
        if positional and name in self:
            known = parameters(self[name]).items()
            order = [key for key, declared in known if not declared.field.kw_only]
            if len(positional) > len(order):
                raise ValueError(f"{text!r} has too many arguments: {name} takes {order}")
            named.update(zip(order, positional, strict=False))
        return self._build(name, named)

    def _build(self, name: Any, arguments: dict[str, Any]) -> Member:
        cls = self[values.one_of(sorted(self)).check(self.key, name)]
        known = parameters(cls)
        what = f"{self.key.capitalize()} {name!r}"
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            hint = values.closest(unknown[0], known)
            raise ValueError(f"{what} takes {list(known)}.{hint} Received unknown: {unknown}")
        missing = [key for key, one in known.items() if one.required and key not in arguments]
        if missing:
            raise ValueError(f"{what} needs {missing}. Received: {values.received(arguments)}")
        return cls(**arguments)

    def _call(self, text: str) -> tuple[str, list[Any], dict[str, Any]]:
        """Name and literal arguments of "Name(1, key=2)"."""
        try:
            node = ast.parse(text.strip(), mode="eval").body
            if isinstance(node, ast.Name):
                return node.id, [], {}
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                raise ValueError
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            allowed = f"a name with plain arguments, such as {self.example}"
            raise values.error(self.key, allowed, text) from None
        return node.func.id, positional, named
