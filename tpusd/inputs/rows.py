"""The pictures of a run's rows: found, checked and pinned by their sha256 before anything runs."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.packed_rows import Packer, first_rows, pack
from tpusd.config.paths import is_address
from tpusd.config.rows import CONTROL_IMAGE, Row
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.errors import ChangedFile, UserError, show, show_path
from tpusd.inputs.addresses import local_file, shown
from tpusd.inputs.pictures import MAX_FILE_BYTES, bucket_size, check_picture, fitted_size
from tpusd.inputs.row_files import (
    CONTROL_FIELDS,
    CONTROLS,
    PICTURES,
    PINS,
    check_controls,
    files_of,
    has_control,
    is_of_run,
    shared_controls,
)
from tpusd.plan.specs import ImageSize

SIZING = {"fit": fitted_size, "bucket": bucket_size}  # where `resize` decides an image's size
MAX_LISTED = 10  # faults that an error names
NUM_READERS = 4  # Pillow releases the interpreter while it decodes


def located(row: Row, directory: Path) -> Row:
    """The row with whole paths; those that it has are relative to `directory`."""
    if row.image is None and row.mask is None and row.control_images is None:
        return row
    folder, own = directory.absolute(), {name: getattr(row, name) for name, _ in PICTURES}
    whole: dict[str, Any] = {name: _whole(path, folder) for name, path in own.items() if path is not None}
    if row.control_images is not None:
        whole[CONTROLS[0]] = tuple(None if path is None else _whole(path, folder) for path in row.control_images)
    return replace(row, **whole)


def _whole(path: str, folder: Path) -> str:
    """The whole path of one that is relative to a folder; an address stays as it is."""
    return path if is_address(path) else str(folder / path)


def with_inputs(rows: Sequence[Row], config: RunConfig) -> Sequence[Row]:
    """The rows with the run's own pictures where they have none. Raises UserError for what lacks one."""
    own = {name: getattr(config, name) for name, _ in PICTURES if getattr(config, name) is not None}
    shared: dict[str, Any] = {name: _whole(path, Path.cwd()) for name, path in own.items()}
    if controls := shared_controls(config):
        shared[CONTROLS[0]] = tuple(_whole(path, Path.cwd()) for path in controls)
    filled = rows
    if shared:
        filled = pack(
            replace(row, **{name: path for name, path in shared.items() if getattr(row, name) is None}) for row in rows
        )
    check_controls(filled, config)
    each = list(first_rows(filled))
    if all(row.image is None for _, row in each):
        names = ("strength",) if any(has_control(row) for _, row in each) else ("strength", "resize")
        for name in names:
            if (value := getattr(config, name)) != getattr(RunConfig, name):
                raise UserError(f"{name}={show(value)}: there is no image to start from; add image=FILE")
    if config.mask_feather and all(row.mask is None for _, row in each):
        raise UserError(f"mask_feather={config.mask_feather}: there is no mask; add mask=FILE")
    for index, row in each:
        number = config.first_row + index
        for name in ("mask", "strength"):
            value = getattr(row, name)
            if value is not None and row.image is None:
                raise UserError(f"row {number}: {name}={show(value)}: has no image to start from; add image=FILE")
        if row.image is not None and config.noise != "threefry":
            raise UserError(
                f"noise={config.noise}: row {number} starts from a picture, for which only noise=threefry is there; "
                "leave noise or image out"
            )
    return filled


def released(saved: SavedConfig, fields: Collection[str]) -> SavedConfig:
    """A past run's config whose rows no longer hold the run's `image` and `mask`, where `fields` sets them again.

    Rows with a picture of their own keep it. Raises UserError for sizes that the old `resize` decided.
    """
    if "resize" in fields and saved.resize in SIZING:
        raise UserError(
            f"resize: the run was made with resize={saved.resize}, which decided its sizes; start a new run for others"
        )
    shared = [name for name, _ in PICTURES if name in fields and getattr(saved, name) is not None]
    if CONTROL_FIELDS & set(fields) and shared_controls(saved):
        shared.append(CONTROLS[0])
    if not shared:
        return saved
    rows = pack(_released(row, saved, shared) for row in saved.prompts.rows)
    return replace(saved, prompts=replace(saved.prompts, rows=rows))


def _released(row: Row, saved: SavedConfig, names: Sequence[str]) -> Row:
    of_run = {name for name in names if is_of_run(row, saved, name)}
    gone: dict[str, Any] = {field: None for pair in (*PICTURES, CONTROLS) if pair[0] in of_run for field in pair}
    return replace(row, **gone)


def same_rows(before: Row, after: Row) -> bool:
    """Whether a row that was read again is the row of a run, which also says what its files were."""
    found = {name: getattr(before, name) for name in PINS if getattr(after, name) is None}
    has_files = next(files_of(before), None) is not None
    if has_files and after.height is None and after.width is None:
        found |= {"height": before.height, "width": before.width}  # by `resize`
    if has_files:
        after = replace(after, **found)
    if before.loras is not None and after.loras is not None and len(before.loras) == len(after.loras):
        pairs = zip(before.loras, after.loras, strict=True)
        after = replace(
            after, loras=tuple(new if new.sha256 else replace(new, sha256=old.sha256) for old, new in pairs)
        )
    return before == after


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file. size: height and width as it is shown."""

    sha256: str
    size: ImageSize


def pinned(
    rows: Sequence[Row],
    config: RunConfig,
    *,
    box: ImageSize,
    multiple: int,
    used: Callable[[int], bool] = lambda number: True,
) -> Sequence[Row]:
    """The rows with the sha256 of their files, each of which is read and decoded once, and the sizes of SIZING.

    rows: as `with_inputs` gives them.
    config: of the run.
    box: height and width of the run's images.
    multiple: of which sizes must be multiples.
    used: number of a row -> whether the run makes it; the files of other rows are not read.
    Raises UserError, which names the rows of files that are missing, broken, or not those of their sha256.
    """
    wanted: dict[tuple[str, str], int] = {}  # (column, path) -> the first row that has it
    for number, row in enumerate(rows, config.first_row):
        for file in files_of(row) if used(number) else ():
            wanted.setdefault((file.column, file.path), number)
    if not wanted:
        return rows
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="inputs") as pool:
        looked = list(zip(wanted.items(), pool.map(_look_at, wanted), strict=True))
    _refuse([_of_row(number, found) for (_, number), found in looked if isinstance(found, UserError)])
    files = {key: found for (key, _), found in looked if not isinstance(found, UserError)}
    made = Packer()
    faults: list[UserError] = []
    for number, row in enumerate(rows, config.first_row):
        try:
            made.add(_pinned(row, files) if used(number) else row)
        except UserError as error:
            faults.append(_of_row(number, error))
    _refuse(faults)
    if config.resize not in SIZING:
        return made.rows()
    sized = functools.partial(SIZING[config.resize], multiple=multiple)
    return pack(_sized(row, files, box, sized) for row in made.rows())


def _pinned(row: Row, files: Mapping[tuple[str, str], _Found]) -> Row:
    digests: dict[str, Any] = {}
    for file in files_of(row):
        _refuse_other(file.column, file.path, files[file.column, file.path].sha256, file.sha256)
    for name, pin in PICTURES:
        if (path := getattr(row, name)) is not None:
            digests[pin] = files[name, path].sha256
    if row.control_images is not None:
        own = (None if path is None else files[CONTROL_IMAGE, path].sha256 for path in row.control_images)
        digests[CONTROLS[1]] = tuple(own)
    if row.image is not None and row.mask is not None:
        (height, width), (own_height, own_width) = files["mask", row.mask].size, files["image", row.image].size
        if (height, width) != (own_height, own_width):
            raise UserError(
                f"mask={show_path(Path(row.mask))}: has {width}x{height} pixels and its image has "
                f"{own_width}x{own_height}; both must be of one size"
            )
    return replace(row, **digests)


def _refuse_other(name: str, path: str, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise ChangedFile(
            f"{name}={shown(path)}: is another file: its sha256 is {found[:12]}..., not {wanted[:12]}...; "
            "restore the old one, or start a new run with this one"
        )


def refuse_other_pictures(rows: Sequence[Row], wanted: Callable[[str], str | None], first_row: int) -> None:
    """Raises ChangedFile where files of rows are not those that are wanted.

    rows: as `pinned` gives them.
    wanted: path -> sha256; None: any file.
    first_row: the number of the first of the rows.
    """
    faults: list[UserError] = []
    for index, row in first_rows(rows):
        for file in files_of(row):
            if file.sha256 is not None:
                try:
                    _refuse_other(file.column, file.path, file.sha256, wanted(file.path))
                except ChangedFile as error:
                    faults.append(_of_row(first_row + index, error))
    _refuse(faults)


def _of_row(number: int, error: UserError) -> UserError:
    return type(error)(f"row {number}: {error}")


def _sized(
    row: Row,
    files: Mapping[tuple[str, str], _Found],
    box: ImageSize,
    sized: Callable[[ImageSize, ImageSize], ImageSize],
) -> Row:
    """With the size of its picture's shape, unless it has a height and a width of its own."""
    first = next((file for file in files_of(row) if file.column != "mask"), None)
    found = None if first is None else files.get((first.column, first.path))
    if found is None or (row.height is not None and row.width is not None):
        return row
    own = (box[0] if row.height is None else row.height, box[1] if row.width is None else row.width)
    height, width = sized(found.size, own)
    return replace(row, height=height, width=width)


def _refuse(faults: Sequence[UserError]) -> None:
    """Raises all of them as one, as ChangedFile if one of them is."""
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more files" if len(faults) > MAX_LISTED else ""
        kind = ChangedFile if any(isinstance(fault, ChangedFile) for fault in faults) else UserError
        raise kind("prompts: " + "; ".join(map(str, faults[:MAX_LISTED])) + more)


def _look_at(one: tuple[str, str]) -> _Found | UserError:
    column, path = one
    where = f"{column}={shown(path)}"
    try:
        file = local_file(path, column)
        size = storage.file_size(file)
        if size is None:
            return UserError(f"{where}: {'is not a file' if file.exists() else 'no such file'}")
        if size > MAX_FILE_BYTES:
            return UserError(f"{where}: is over {MAX_FILE_BYTES >> 20} MiB; save it smaller")
        own_size = check_picture(path, column)
        return _Found(sha256=storage.file_sha256(file), size=own_size)
    except UserError as error:
        return error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; a circle of links
        return UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}")
