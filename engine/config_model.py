"""What all models of the configuration share. Not here: any setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

#: TOML has text where these are meant, and lists where tuples are.
FilePath = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Time = Annotated[AwareDatetime, Field(strict=False)]


class Model(BaseModel):
    # Strict: a number is no text and true is no number, though pydantic would take them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
