"""Names of the meshes that are known without a file; see `body.meshes`."""

from collections.abc import Mapping

BODY = "body"  # the project's procedural body
# Those that were released with detectron2's DensePose, with their numbers of vertices.
RELEASED: Mapping[str, int] = {
    name: int(name.rpartition("_")[2])
    for name in (
        *("smpl_27554", "chimp_5029", "cat_5001", "cat_7466", "sheep_5004", "zebra_5002"),
        *("horse_5004", "giraffe_5002", "elephant_5002", "dog_5002", "dog_7466", "cow_5002"),
        "bear_4936",
    )
}
