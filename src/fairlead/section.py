"""The base of every section of a settings file, and its errors in one line each.

A section refuses keys that it does not know and says which key was probably meant.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from fairlead.errors import FairleadError

# Where pydantic speaks of Python types, a writer of YAML is told what to write.
_SHAPES = {
    "tuple_type": "should be a list, for example [...]",
    "model_type": "should be a mapping of keys, for example {key: value}",
    "model_attributes_type": "should be a mapping of keys, for example {key: value}",
    "too_short": "should not be empty",
}


class Section(BaseModel):
    """A frozen part of a settings file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields)
                    raise PydanticCustomError(
                        "unknown_key", "{text}", {"text": f"unknown key {key!r}; {hint}"}
                    )
        return data


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the close matches, then all that is known."""
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}known: {', '.join(choices)}"


def first_problem(error: ValidationError, where: str) -> FairleadError:
    """The first problem of a failed validation, as one line that names the key and the file."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(_key_parts(problem["loc"]))
    if problem["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        text = f"unknown kind {problem['ctx']['tag']!r}; {did_you_mean(str(problem['ctx']['tag']), known)}"
    elif problem["type"] == "union_tag_not_found":
        text = "give it a kind, for example {kind: ...}"
    elif problem["type"] == "missing":
        text = "is missing"
    elif problem["type"] in _SHAPES:
        text = f"{_SHAPES[problem['type']]} (got {problem['input']!r})"
    elif problem["type"] in ("unknown_key", "fairlead"):
        text = problem["msg"]
    else:
        text = f"{_lower_first(problem['msg'])} (got {problem['input']!r})"
    return FairleadError(f"{where}: {key + ': ' if key else ''}{text}")


def _key_parts(location: tuple[int | str, ...]) -> list[str]:
    """The path of a key as a user wrote it: without the kind that pydantic inserts after a tagged union."""
    tagged = ("arrivals", "lengths", "timing", "starts", "turns")
    # A key that is tagged itself, and lists of tagged sections.
    kinds = {i + 1 for i, part in enumerate(location) if part in tagged}
    kinds |= {i + 2 for i, part in enumerate(location) if part == "faults"}
    return [str(part) for i, part in enumerate(location) if i not in kinds]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def invalid(text: str) -> PydanticCustomError:
    """An error to raise in a validator, whose text reaches the user unchanged."""
    return PydanticCustomError("fairlead", "{text}", {"text": text})


def beside_file(path: Path | str, info: ValidationInfo) -> Path:
    """`path`, taken relative to the directory that the validation context names (else the current one)."""
    directory = Path((info.context or {}).get("directory", "."))
    resolved = (directory / Path(path).expanduser()).resolve()
    if not resolved.is_file():
        raise invalid(
            f"there is no file {path} in {directory.resolve()}; paths are relative to the scenario file"
        )
    return resolved


FileBeside = Annotated[Path, AfterValidator(beside_file)]
"""An existing file, given relative to the scenario file that mentions it; made absolute."""
