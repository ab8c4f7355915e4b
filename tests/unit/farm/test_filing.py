"""The order in which files and batches of OpenAI clients lie."""

from hypothesis import given
from hypothesis import strategies as st

from farm.filing import content_key, filed_prefix, job_of_key, lines_key, mark_of, new_stamp, stamp_in

moments = st.integers(0, 2**47).map(lambda ms: ms / 1000)


@given(moments, moments)
def test_the_newer_comes_first(one_s, other_s):
    """A listing by key begins with the newest."""
    one, other = new_stamp(one_s), new_stamp(other_s)
    assert (one < other) == (mark_of(one) > mark_of(other))
    assert mark_of(mark_of(one)) == one


def test_what_is_no_id_has_no_stamp():
    """Nothing of it becomes part of a key."""
    stamp = new_stamp()
    assert stamp_in(f"file-{stamp}", "file-") == stamp
    for wrong in (stamp, f"batch_{stamp}", f"file-{stamp}x", f"file-{stamp[:-1]}", f"file-{stamp[:-1]}/", "", "file-"):
        assert stamp_in(wrong, "file-") is None


def test_no_tenant_reaches_anothers_keys_by_its_name():
    """Dots are names, not folders."""
    assert content_key("..", new_stamp()).startswith("openai/tenant-../contents/")


def test_a_batch_is_its_jobs_record():
    """What deletes old batches can tell which of them go on."""
    stamp = new_stamp()
    for key in (lines_key("a", stamp), f"{filed_prefix('a', 'batches')}{mark_of(stamp)}.json"):
        assert job_of_key(key) == f"job_{stamp}"
    for key in (content_key("a", stamp), f"{filed_prefix('a', 'files')}{mark_of(stamp)}.json", "jobs/x", ""):
        assert job_of_key(key) is None
