"""Every code of the catalogue can be provoked, goes away when the thing is mended, and says what to do."""

import pytest

from ftkit.chat import RULES, SEVERITIES, finding_codes

from .cases import CASES


def test_every_code_has_a_case_and_every_case_a_code():
    assert sorted(CASES) == sorted(RULES)


@pytest.mark.parametrize("code", CASES)
def test_provoked_and_mended(code):
    provoke, mend = CASES[code]
    found = [f for f in provoke() if f.code == code]
    assert len(found) >= 1
    assert found[0].severity == RULES[code].severity
    assert found[0].observed.strip()
    assert code not in finding_codes(mend())


@pytest.mark.parametrize("code", RULES)
def test_each_says_how_bad_why_and_what_to_do(code):
    kind = RULES[code]
    assert kind.severity in SEVERITIES
    for text in (kind.why, kind.remedy):
        assert text[0].isupper()
        assert text.endswith(".")
