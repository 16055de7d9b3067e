import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_first_example_prints_what_the_readme_says(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    expected = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    exec(code, {})
    printed = capsys.readouterr().out
    number = r"\d\.\d\d"
    assert re.sub(number, "", printed) == re.sub(number, "", expected)
    # Another processor rounds otherwise, and a training may end elsewhere.
    for value, told in zip(
        re.findall(number, printed), re.findall(number, expected), strict=True
    ):
        assert abs(float(value) - float(told)) <= 0.03


def test_there_are_two_commands_of_one_line_each():
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert re.fullmatch(r"pip install -c constraints\.txt [^\n]+\n", command)
