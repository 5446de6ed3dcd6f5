"""Foreign weights in, ours out.

python -m adv_ssl.weights import PATH --workdir=DIR
    A .pth of MAE or timm, a .safetensors of timm, an .npz of Google's ViT or big_vision, or what
    export wrote. Then --config.weights=DIR starts from it; DIR/import.json is the full report.
python -m adv_ssl.weights export STAGE PATH
    The folder of a stage of a run, such as DIR/finetune, to a .safetensors (encoder and classifier,
    by timm's names) or an .npz (all parameters, by ours).

Exit codes: 0 done; 2 a mistake, told in one line.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from adv_ssl import command
from adv_ssl.errors import UserError
from adv_ssl.files import user_path
from adv_ssl.weights import transfer
from adv_ssl.weights.layouts import Row

_WORKDIR = flags.DEFINE_string("workdir", None, "import: folder for the checkpoint, a new one.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "import: pixels a side that position embeddings are made to fit.",
    lower_bound=1,
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "import: attention heads, if not width / 64.", lower_bound=1
)
_MEAN = flags.DEFINE_list("mean", None, "import: R,G,B of pixels in [0, 1]; default ImageNet's.")
_STD = flags.DEFINE_list("std", None, "import: R,G,B of pixels in [0, 1]; default ImageNet's.")
_USAGE = "import PATH --workdir=DIR, or export STAGE PATH"


def _options() -> transfer.Options:
    return transfer.Options(_IMAGE_SIZE.value, _HEADS.value, _MEAN.value, _STD.value)


def _import(path: pathlib.Path) -> None:
    if not _WORKDIR.value:
        raise UserError("import needs --workdir=DIR, a new folder for the checkpoint.")
    workdir = user_path(_WORKDIR.value)
    report = transfer.import_weights(path, workdir, _options())
    print("\n".join(transfer.summary([Row(**row) for row in report["parameters"]])))
    print(f"architecture {report['architecture']}, classes {report['classes']}")
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"self-test {report['self_test']}")
    print(f"start from it: --config.weights={workdir}; in full: {workdir / 'import.json'}")


def _export(folder: pathlib.Path, path: pathlib.Path) -> None:
    if _WORKDIR.value or transfer.Options() != _options():
        raise UserError(f"export takes no options: {_USAGE}.")
    print("\n".join(transfer.summary(transfer.export_weights(folder, path))))
    print(path)


def _work(words: Sequence[str]) -> None:
    paths = [user_path(word) for word in words[1:]]
    match words[:1], paths:
        case ["import"], [path]:
            _import(path)
        case ["export"], [folder, path]:
            _export(folder, path)
        case _:
            raise UserError(f"{' '.join(words) or 'nothing'}: expected {_USAGE}.")


if __name__ == "__main__":
    command.start(_work, command.parse_flags)
