"""The code of pages of the documentation, run as doctests."""

import doctest
import re

NUMBER = re.compile(r"-?\d*\.\d+(?:e[+-]\d+)?")


class RoundedChecker(doctest.OutputChecker):
    """Compare outputs, but allow numbers with decimals to differ by rounding.

    Sums differ between processors, and training magnifies the difference: it may even
    change the epoch that is kept. Two numbers match if they differ by at most 0.05 or
    5 %. Everything else, integers included, has to be the same.
    """

    def check_output(self, want, got, optionflags):
        found, expected = NUMBER.findall(got), NUMBER.findall(want)
        close = len(found) == len(expected) and all(
            abs(float(a) - float(b)) <= max(0.05, 0.05 * abs(float(b)))
            for a, b in zip(found, expected, strict=True)
        )
        texts = [NUMBER.sub("#", text) for text in (want, got)]
        return super().check_output(want, got, optionflags) or (
            close and super().check_output(*texts, optionflags)
        )


def examples_of(page, with_skipped=False):
    """Return the examples of a page as one test, which shares its variables.

    Parameters
    ----------
    page : Path
        File in reStructuredText.
    with_skipped : bool, default=False
        Whether examples that are marked to be skipped are run as well.
    """
    text = page.read_text()
    if with_skipped:
        text = re.sub(r" +# doctest: \+SKIP", "", text)
    return doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)


def failures_of(test):
    """Run examples; return a report of those that fail, "" if none does."""
    report = []
    runner = doctest.DocTestRunner(
        checker=RoundedChecker(),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    runner.run(test, out=report.append)
    return "".join(report)
