"""The one exception that means: the request was wrong, here is the remedy."""


class InputError(ValueError):
    """Bad data, a bad model, or a bad name; the message is one line and says what to do.

    The command line turns it into exit status 2 without a trace-back.
    """


def one_line(error: BaseException) -> str:
    """Write an exception's message in one line, without the table of all sites that Pyro appends."""
    return " ".join(str(error).split("Trace Shapes:")[0].split())
