"""The JSON Schema of manifests, for editors: what every model may say, and what each task reads beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.registry.manifest import Manifest, OfVersion
from service.tasks import AnyTask


def manifest_schema(tasks: Mapping[str, type[AnyTask]]) -> dict[str, Any]:
    """The schema of `<model>/manifest.toml`.

    Args:
        tasks: that there are, by name.
    """
    common = Manifest.model_json_schema(ref_template="#/$defs/{model}")
    defined = common.pop("$defs", {})
    properties = common["properties"]
    properties["task"] |= {"enum": list(tasks)}
    of_tasks = []
    for name, task in tasks.items():
        options = task.Options.model_json_schema(ref_template=f"#/$defs/{task.__name__}.{{model}}")
        defined |= {f"{task.__name__}.{key}": schema for key, schema in options.pop("$defs", {}).items()}
        own = {"properties": options.get("properties", {}), "required": options.get("required", [])}
        is_it = {"properties": {"task": {"const": name}}, "required": ["task"]}
        of_tasks.append({"if": is_it, "then": own})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "manifest.toml of a model of Gridloop",
        "description": "A version's own manifest.toml may have "
        f"{', '.join(OfVersion.model_fields)} and the keys of the task.",
        "type": "object",
        "properties": properties,
        "required": ["task"],
        "allOf": of_tasks,
        "unevaluatedProperties": False,
        "$defs": defined,
    }
