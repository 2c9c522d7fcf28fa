"""The tree of a config: ml_collections' ConfigDict, or where that is not installed, as much of it as configs use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder
else:
    try:
        from ml_collections import ConfigDict
        from ml_collections.config_dict import placeholder
    except ModuleNotFoundError:

        class ConfigDict(dict):
            """A dictionary whose keys are attributes too. Values are plain: a teacher's do not follow the student's."""

            def __init__(self, values: Any = ()) -> None:
                super().__init__({k: ConfigDict(v) if isinstance(v, dict) else v for k, v in dict(values).items()})

            def __getattr__(self, name: str) -> Any:
                try:
                    return self[name]
                except KeyError:
                    raise AttributeError(name) from None

            def __setattr__(self, name: str, value: Any) -> None:
                self[name] = ConfigDict(value) if type(value) is dict else value

            def __delattr__(self, name: str) -> None:
                del self[name]

            def get_ref(self, name: str) -> Any:
                return self[name]

        def placeholder(kind: type) -> None:
            return None


__all__ = ["ConfigDict", "placeholder"]
