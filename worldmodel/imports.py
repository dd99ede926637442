"""How a class outside of the project is named: "module:class", to be found on the import path.

Owns: importing one and saying what is wrong with it. Does not know whether whoever named it may be trusted.
"""

import importlib
from typing import TypeVar

from worldmodel.errors import ConfigError

Kind = TypeVar("Kind")


def import_class(place: str, base: type[Kind], what: str) -> type[Kind]:
    """Import a class; this runs the code of its module, where that is not imported already.

    Args:
        place: "module:class".
        base: what it must derive from.
        what: the class, in words, for messages: "world 'rooms:Rooms'".

    Raises:
        ConfigError: it cannot be imported, says whether for want of the module itself or of a package that this needs;
            or it derives from something else.
    """
    module, _, name = place.partition(":")
    try:
        found = vars(importlib.import_module(module))[name]
    except (ImportError, ValueError) as error:
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        if lacking and not f"{module}.".startswith(f"{lacking}."):
            raise ConfigError(f"{what} needs the package {lacking}, which is not installed: install it") from error
        raise ConfigError(f"{what} cannot be imported ({error}): check module:class, and PYTHONPATH") from error
    except KeyError as error:
        raise ConfigError(f"{what} cannot be imported (module {module} has no {name!r}): check module:class") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{place} is no {base.__name__}: derive it from {base.__module__}.{base.__name__}")
    return found
