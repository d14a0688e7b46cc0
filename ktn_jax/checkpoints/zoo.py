"""The model zoo: every DensePose model that was released for detectron2 or for KTN, by its name."""

import dataclasses
import difflib
import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ktn_jax.checkpoints import detectron2_tree
from ktn_jax.runtime import caches, downloads

DEFAULT = "densepose_rcnn_R_50_FPN_DL_s1x"

_TABLE = pathlib.Path(__file__).with_name("zoo.json")
# "charts" are the models of detectron2's chart table, "evolution" those of them that were made for
# animals, "embedding" its continuous surface embeddings.
_LICENCES = {"KTN": "not stated"}  # else that of detectron2's model zoo
# The folder of KTN's authors, which only a browser can open.
_KTN_FOLDER = "https://pan.baidu.com/s/1OyuimZ4Xd6rtC3iD4SbyZQ (extraction code fccy)"
_CODE_OF_KTN = "https://github.com/stoa-xh91/HumanDensePose"


@dataclasses.dataclass(frozen=True)
class Model:
    """A released model.

    Attributes:
        name: that of its configuration file.
        family: charts, evolution, embedding or KTN.
        url: address of the weights; "" where a program cannot fetch them.
        file: name of the weights' file; "" where none was released.
        box: published average precision of boxes; None where it is not known. So are `GPS` and
            `GPSm` on the surface: on DensePose-COCO's minival, of animals on sets of their own.
        licence: of the weights.
        num_values: numbers in the weights; None where it is not known.
        settings: values over detectron2's defaults, by dotted key.
    """

    name: str
    family: str
    url: str
    file: str
    box: float | None
    GPS: float | None
    GPSm: float | None
    licence: str
    num_values: int | None
    settings: Mapping[str, Any]

    @property
    def meshes(self) -> set[str]:
        """Names of the meshes of an embedding model."""
        start = "MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS."
        found = (key.removeprefix(start) for key in self.settings if key.startswith(start))
        return {name.partition(".")[0] for name in found}

    @property
    def sha256_start(self) -> str:
        """The first digits of the file's SHA-256; "" where they are not known."""
        match = re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", self.file)
        return match[1] if match else ""

    @property
    def place(self) -> str:
        """Where people find the weights."""
        if self.family != "KTN":
            return self.url
        if self.file:
            return _KTN_FOLDER
        return f"no file is known to be released; {_CODE_OF_KTN} has the configuration"

    @property
    def cached(self) -> pathlib.Path:
        """Where the weights are, or are put; a .safetensors file of that name does as well."""
        folder = caches.folder("models") / self.name
        path = folder / (self.file or f"{self.name.rpartition('/')[2]}.pth")
        converted = path.with_suffix(".safetensors")
        return converted if converted.is_file() else path

    @property
    def is_here(self) -> bool:
        """Whether the weights are on this machine."""
        return self.cached.is_file()

    def weights(self) -> pathlib.Path:
        """Finds the weights, which are fetched the first time.

        The environment's `KTN_MODELS_URL` names a mirror of the server that has them.

        Raises:
            FileNotFoundError: a program cannot fetch them; the message says where people find them
                and where to put them.
            ktn_jax.runtime.downloads.DownloadError: they could not be fetched.
        """
        path = self.cached
        if path.is_file():
            return path
        if not self.url:
            raise FileNotFoundError(
                f"the weights of {self.name} are not here, and a program cannot fetch them: "
                f"{self.place}. Put the file at {path}, or name it with --weights"
            )
        return downloads.fetch(downloads.mirrored(self.url), path, self.sha256_start)

    def tree(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole tree of detectron2's settings.

        Args:
            changes: values of some of them, by dotted key.
        """
        given = detectron2_tree.merge(self.settings, changes or {})
        return detectron2_tree.nest(detectron2_tree.merge(detectron2_tree.defaults(given), given))


@functools.cache
def models() -> dict[str, Model]:
    """All models by name, in the order of the published tables."""
    table = json.loads(_TABLE.read_text())
    found = {}
    for row in table["models"]:
        url = row.get("url", "")
        found[row["name"]] = Model(
            name=row["name"],
            family=row["family"],
            url=url,
            file=row.get("file", url.rpartition("/")[2]),
            box=row.get("box"),
            GPS=row.get("GPS"),
            GPSm=row.get("GPSm"),
            licence=_LICENCES.get(row["family"], "CC BY-SA 3.0"),
            num_values=row.get("values"),
            settings=table["settings"] | row["settings"],
        )
    return found


def find(name: str) -> Model:
    """The model of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest.
    """
    known = models()
    if name in known:
        return known[name]
    near = suggest(name)
    raise ValueError(
        f"no model is called {name!r}: {near + ' ' if near else ''}`ktn models` lists all"
    )


def suggest(name: str) -> str:
    """A question that names the models that were probably meant, or nothing."""
    by_lower = {other.lower(): other for other in models()}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(by_lower[other] for other in near)}?" if near else ""


def recognise(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The models of detectron2 whose weights have these parameters.

    Models that were trained in different ways have the same: the first is the plainest.

    Args:
        shapes: of detectron2's parameters, such as `backbone.bottom_up.stem.conv1.weight`. The
            names count, and the number of classes.
    """

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    head, embedders = "MODEL.ROI_DENSEPOSE_HEAD.", "roi_heads.embedder.embedder_"
    predictor = "roi_heads.densepose_predictor."
    scores = shapes.get("roi_heads.box_predictor.cls_score.weight") or (0,)
    wanted = {
        "MODEL.ROI_HEADS.NUM_CLASSES": scores[0] - 1,  # and the background
        "MODEL.RESNETS.DEPTH": 101 if has("backbone.bottom_up.res4.22.") else 50,
        f"{head}DECODER_ON": has("roi_heads.decoder."),
        f"{head}UV_CONFIDENCE.ENABLED": has(f"{predictor}sigma_2_lowres."),
        f"{head}SEGM_CONFIDENCE.ENABLED": has(f"{predictor}fine_segm_confidence_lowres."),
        f"{head}NAME": "DensePoseDeepLabHead"
        if has("roi_heads.densepose_head.ASPP.")
        else "DensePoseV1ConvXHead",
    }
    if wanted[f"{head}UV_CONFIDENCE.ENABLED"]:
        is_aniso = has(f"{predictor}kappa_u_lowres.")
        wanted[f"{head}UV_CONFIDENCE.TYPE"] = "indep_aniso" if is_aniso else "iid_iso"
    meshes = {
        name.removeprefix(embedders).partition(".")[0]
        for name in shapes
        if name.startswith(embedders)
    }
    families = ("embedding",) if meshes else ("charts", "evolution")
    own = "embed_lowres." if meshes else "index_uv_lowres."
    if not has("backbone.fpn_lateral2.") or not has(predictor + own):
        return []
    standard = detectron2_tree.defaults({})
    return [
        name
        for name, model in models().items()
        if model.family in families
        and model.meshes == meshes
        and all((standard | dict(model.settings))[key] == value for key, value in wanted.items())
    ]
