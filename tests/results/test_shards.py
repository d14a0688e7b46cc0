"""Shards of results: stopped and continued, spread and merged, nothing twice."""

import json

import pytest

from ktn_jax.results.shards import ResultsWriter, ShardError, merge_results

RUN = {"weights": "a.npz", "config": "r50"}


def _entries(image_id, count=2):
    return [{"image_id": image_id, "score": 0.5 + 0.1 * k, "n": k} for k in range(count)]


def _merged(folder):
    counts = merge_results(folder, folder / "results.json")
    return counts, json.loads((folder / "results.json").read_text())


def test_merged_file_does_not_depend_on_the_number_of_processes(tmp_path):
    texts = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        for index in range(processes):
            with ResultsWriter(folder, RUN, index) as writer:
                for image_id in range(index, 10, processes):
                    writer.add(image_id, _entries(image_id, image_id % 3))
        (images, repeated), _ = _merged(folder)
        assert (images, repeated) == (10, 0)
        texts.append((folder / "results.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == [e for i in range(10) for e in _entries(i, i % 3)]


def test_an_image_of_two_processes_counts_once(tmp_path):
    writers = [ResultsWriter(tmp_path, RUN, index) for index in range(2)]
    writers[0].add(4, _entries(4))
    writers[1].add(5, _entries(5))
    writers[1].add(4, _entries(4, 1))  # the filled-up last batch, on another device
    for writer in writers:
        writer.close()
    counts, results = _merged(tmp_path)
    assert counts == (2, 1)
    assert results == _entries(4) + _entries(5)


def test_a_stopped_run_resumes(tmp_path):
    with ResultsWriter(tmp_path, RUN) as writer:
        writer.add(1, _entries(1))
        writer.add(2, _entries(2))
    shard = next(tmp_path.glob("*.jsonl"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])  # killed while image 2 was written
    with ResultsWriter(tmp_path, RUN) as writer:
        assert writer.done == {1}
        writer.add(2, _entries(2))
        writer.add(3, [])
    assert shard.read_bytes().startswith(whole)
    with ResultsWriter(tmp_path, RUN, process_index=1) as writer:
        assert writer.done == {1, 2, 3}  # a later run may have another number of processes
    assert _merged(tmp_path) == ((3, 0), _entries(1) + _entries(2))


def test_a_run_stopped_in_its_first_line_starts_over(tmp_path):
    with ResultsWriter(tmp_path, RUN):
        pass
    shard = next(tmp_path.glob("*.jsonl"))
    shard.write_bytes(shard.read_bytes()[:5])
    with ResultsWriter(tmp_path, RUN, process_index=1) as writer:
        writer.add(1, _entries(1))
    assert _merged(tmp_path) == ((1, 0), _entries(1))
    with ResultsWriter(tmp_path, RUN) as writer:
        assert writer.done == {1}
        writer.add(2, _entries(2))
    assert _merged(tmp_path) == ((2, 0), _entries(1) + _entries(2))


def test_shards_of_another_run_are_refused(tmp_path):
    with ResultsWriter(tmp_path, RUN) as writer:
        writer.add(1, _entries(1))
    with pytest.raises(ShardError, match="written by another run .*a.npz"):
        ResultsWriter(tmp_path, {**RUN, "weights": "b.npz"})


def test_an_image_is_written_once_and_entries_belong_to_it(tmp_path):
    with ResultsWriter(tmp_path, RUN) as writer:
        writer.add(1, _entries(1))
        with pytest.raises(ShardError, match="image 1 is already written"):
            writer.add(1, [])
        with pytest.raises(ShardError, match=r"entries of image 2 name images \[1\]"):
            writer.add(2, _entries(1))
        with pytest.raises(ShardError, match=r"entries of image 2 name images \[1, None\]"):
            writer.add(2, [*_entries(1), {"score": 0.5}])
        with pytest.raises(ValueError, match="JSON compliant"):
            writer.add(3, [{"image_id": 3, "score": float("nan")}])
    assert _merged(tmp_path)[0] == (1, 0)


def test_nothing_to_merge(tmp_path):
    with pytest.raises(ShardError, match="no shards"):
        merge_results(tmp_path, tmp_path / "results.json")
    with ResultsWriter(tmp_path, RUN):
        pass
    assert _merged(tmp_path) == ((0, 0), [])
