"""
A Sphinx extension: each cross-reference leads to the public name of a thing, and a reference to nothing is an error.

A class is defined in one module and documented under its public path: ``dicomtwist.scu.responses.Answers`` as
``dicomtwist.scu.Answers``. Docstrings and annotations may name either. A reference to something that exists and has no page,
such as an internal class or one of Twisted's, becomes text without a link. With ``nitpicky`` Sphinx warns of all other
references: they name something that is gone.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains import Domain
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

import dicomtwist


def import_all() -> None:
    """Import every module, and then what it imports for type checkers only, so that annotations can be evaluated."""
    for module in pkgutil.walk_packages(dicomtwist.__path__, "dicomtwist."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "dicomtwist":
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                    exec(compile(ast.Module(node.body, []), name, "exec"), vars(module))


@cache
def has_instance_attribute(value: type, name: str) -> bool:
    """Return whether the source of a class of ours, or of one of its bases, names an attribute of its instances."""
    own = (base for base in value.__mro__ if base.__module__.partition(".")[0] == "dicomtwist")
    return any(
        re.search(rf"\b(?:self\.|:ivar ){name}\b|^    {name}: ", inspect.getsource(base), re.MULTILINE) for base in own
    )


@cache
def find(target: str) -> list[tuple[str, Any]] | None:
    """Return the names and values that the dotted name *target* leads through, from the first that is no module."""
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except (ImportError, ValueError):
            continue
        found: list[tuple[str, Any]] = []
        for name in parts[count:]:
            if hasattr(value, name):
                value = getattr(value, name)
            elif inspect.isclass(value) and has_instance_attribute(value, name):
                value = None
            else:
                break
            if not inspect.ismodule(value):
                found.append((name, value))
        else:
            return found
    return None


def candidates(node: pending_xref) -> Iterator[str]:
    """Yield the dotted names that the target of a reference may stand for, the nearest scope first."""
    target = node["reftarget"].lstrip(".")
    module, owner = node.get("py:module"), node.get("py:class")
    if module and owner:
        yield f"{module}.{owner}.{target}"
        # The module where the class is defined: its names are those that its docstring uses.
        defined = find(f"{module}.{owner}")
        if defined and hasattr(defined[0][1], "__mro__"):
            for base in defined[0][1].__mro__:
                yield f"{base.__module__}.{base.__qualname__}.{target}"
                yield f"{base.__module__}.{target}"
    if module:
        yield f"{module}.{target}"
        # A package documents what its modules define.
        yield from (f"{name}.{target}" for name in sorted(sys.modules) if name.startswith(f"{module}."))
    yield target
    yield f"builtins.{target}"


@cache
def public_names(domain: Domain) -> dict[int, str]:
    """Return the path under which each object is documented, by its ``id()``."""
    public: dict[int, str] = {}
    for name, *_ in domain.get_objects():
        for _, value in (find(name) or [])[-1:]:
            if value is not None and not isinstance(value, int | str):
                public.setdefault(id(value), name)
    return public


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Resolve a reference that Sphinx did not: see the module's docstring."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    public = public_names(domain)
    target = node["reftarget"]
    for candidate in candidates(node):
        found = find(candidate)
        if found is None:
            continue
        for position, (_, value) in enumerate(found):
            path = ".".join((public.get(id(value), ""), *(name for name, _ in found[position + 1 :])))
            for kind in (node["reftype"], "obj"):
                link = domain.resolve_xref(
                    env, node.get("refdoc", env.docname), app.builder, kind, path, node, contnode
                )
                if link is not None:
                    return link
        return contnode
    matches = [name for name, *_ in domain.get_objects() if name.endswith(f".{target}")]
    if len(matches) == 1:
        return domain.resolve_xref(env, node.get("refdoc", env.docname), app.builder, "obj", matches[0], node, contnode)
    # zope.interface has its interfaces printed as <InterfaceClass module.name>.
    return contnode if "<InterfaceClass " in target else None


class Unambiguous(SphinxPostTransform):
    """Resolves references to a name that several modules have, such as ``Association``, before Sphinx warns of them."""

    default_priority = 5  # Sphinx resolves references at 10

    def run(self, **kwargs: Any) -> None:
        domain = self.env.domains["py"]
        names = Counter(name.rpartition(".")[2] for name, *_ in domain.get_objects())
        for node in list(self.document.findall(pending_xref)):
            if node.get("refdomain") == "py" and names[node["reftarget"].lstrip(".")] > 1:
                # A reference that autodoc makes of a type has no document.
                node.setdefault("refdoc", self.env.docname)
                content = node[0].deepcopy() if node.children else nodes.Text(node["reftarget"])
                link = resolve(self.app, self.env, node, content)
                if link is not None:
                    node.replace_self(link)


def setup(app: Sphinx) -> dict[str, bool]:
    import_all()
    app.connect("missing-reference", resolve)
    app.add_post_transform(Unambiguous)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
