"""What the user asks for."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from maskrcnn.errors import UserError

_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Settings:
    """The keys of `conf/predict.yaml` that say what is done, with their meaning."""

    source: str | int | list[str | int]
    threshold: Annotated[float, Field(ge=0, le=1)]
    classes: str | list[str] | None
    batch_size: _Positive
    num_workers: Annotated[int, Field(ge=0)] | None
    limit: _Positive | None
    overlays: bool
    cutouts: bool
    export: Literal["yolo", "labelme"] | list[Literal["yolo", "labelme"]]


def read_settings(config: dict[str, Any]) -> Settings:
    """The settings in a config.

    Raises:
        UserError: A value is missing or of the wrong kind; names the key.
    """
    if config["source"] is None or config["source"] == []:
        raise UserError("source: give a picture, a video, a folder, '*.jpg' in quotes, or a camera's number")
    try:
        return Settings(**{name: config[name] for name in Settings.__dataclass_fields__})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise UserError(f"{key}={config[key]}: {first['msg'].lower()}") from None
