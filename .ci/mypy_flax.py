"""Shows mypy the method `replace` that `flax.struct.dataclass` gives to its classes."""

from __future__ import annotations

from collections.abc import Callable

from mypy.nodes import Decorator
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins import common, dataclasses
from mypy.typevars import fill_typevars


def _with_replace(context: ClassDefContext) -> bool:
  done = dataclasses.dataclass_class_maker_callback(context)
  checked = context.cls.info.get('__mypy-replace')  # mypy's own: every field, as a keyword
  if checked is not None and isinstance(checked.node, Decorator):
    self_type = fill_typevars(context.cls.info)
    common.add_method_to_class(
      context.api, context.cls, 'replace', checked.node.func.arguments, self_type
    )
  return done


class Flax(Plugin):
  def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
    return _with_replace if fullname == 'flax.struct.dataclass' else None


def plugin(version: str) -> type[Plugin]:
  return Flax
