"""View of manifest.json: what the pages show of a data set, also of one that was altered since."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """A frozen view of a part of a manifest."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageInfo(View):
    """The form in which images are stored."""

    encoding: str
    height_px: int | None
    width_px: int | None


class SetInfo(View):
    """One set of images."""

    rows: int
    class_counts: tuple[int, ...] | None


class RejectExample(View):
    """One image that was left out."""

    id: str
    reason: str
    detail: str


class Rejects(View):
    """Images that were left out."""

    total: int = 0
    by_reason: dict[str, int] = Field(default_factory=dict)
    examples: tuple[RejectExample, ...] = ()


class Manifest(View):
    """manifest.json of the data set."""

    name: str
    source: dict[str, object]
    image: ImageInfo
    class_names: tuple[str, ...] | None
    sets: dict[str, SetInfo | None]
    rejects: Rejects = Rejects()
    config: dict[str, dict[str, object]] = Field(default_factory=dict)

    def counts(self, set_name: str) -> tuple[int, ...]:
        """Return images of each class in a set; empty where that is not known."""
        info = self.sets.get(set_name)
        return (info.class_counts or ()) if info else ()

    @property
    def is_labelled(self) -> bool:
        """Whether there are classes."""
        return self.class_names is not None
