"""The commands and the first example of the README."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_first_example_prints_the_numbers_of_the_readme(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    expected = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    exec(code, {})
    printed = capsys.readouterr().out
    number = r"\d\.\d\d"
    assert re.sub(number, "", printed) == re.sub(number, "", expected)
    # Rounding differs between processors, and may change the epoch that is kept.
    for value, expected_value in zip(
        re.findall(number, printed), re.findall(number, expected), strict=True
    ):
        assert abs(float(value) - float(expected_value)) <= 0.03


def test_readme_has_two_commands_of_one_line_each():
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert re.fullmatch(r"pip install -c constraints\.txt [^\n]+\n", command)
