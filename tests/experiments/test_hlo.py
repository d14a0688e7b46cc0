"""What is found in the text of programs: collectives with their bytes, and what is irregular."""

import hlo

PROGRAM = """
ENTRY %main (x: f32[8,4]) -> f32[4] {
  %x = f32[8,4]{1,0} parameter(0)
  %all-reduce.1 = (f32[16]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), metadata={op_name="jit(f)/psum"}
  %ag = (f32[2]{0}, f32[16]{0}) all-gather-start(%c), dimensions={0}
  %ag-done = f32[16]{0} all-gather-done(%ag)
  %pair = ((f32[4]{0}, s32[4]{0}), (f32[32]{0}, s32[32]{0})) all-gather-start(%d, %e)
  ROOT %all-to-all.2 = pred[5]{0} all-to-all(%f)
  %rows = f32[5,2,4]{2,1,0:T(8,128)} gather(%g, %h), slice_sizes={1,4}, indices_are_sorted=false
  %sums = f32[9,4]{1,0} scatter(%g, %h, %rows), to_apply=%add
  %loop = (s32[], f32[9,4]{1,0}) while(%tuple), condition=%c, body=%b
  %best = (f32[8]{0}, s32[8]{0}) custom-call(%x), custom_call_target="TopK"
  %fusion = f32[4]{0} fusion(%all-reduce.1), kind=kLoop, backend_config={"estimated_cycles":"70"}
  %copy.1 = f32[4]{0} copy(%fusion), backend_config={"x":{"estimated_cycles":"30"}}
}
"""


def test_every_collective_is_found_once():
    found = list(hlo.collectives(PROGRAM))
    assert [each.kind for each in found] == ["all-reduce", "all-gather", "all-gather", "all-to-all"]
    # Results only: an asynchronous operation also names its operands, in front.
    assert [each.num_bytes for each in found] == [64 + 12, 64, 256, 5]
    assert found[0].arrays == (("f32", 64), ("bf16", 12))
    assert found[0].source == "jit(f)/psum"


def test_irregular_operations_are_counted():
    counts = {"gather": 1, "scatter": 1, "sort": 0, "while": 1, "TopK": 1, "rows": 10}
    assert hlo.irregular(PROGRAM) == counts


def test_estimated_cycles_are_added_by_kind():
    assert hlo.estimated_cycles(PROGRAM) == {"total": 100, "fusion": 70, "copy": 30}
