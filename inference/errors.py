"""The one exception that means: the request was wrong, here is the remedy."""


class InputError(ValueError):
    """Bad data, a bad model, or a bad name; the message is one line and says what to do.

    The command line turns it into exit status 2 without a trace-back.
    """


# Characters of a message that are shown: five lines of a terminal. Some of torch's messages print whole tensors.
LONGEST = 400


def one_line(error: BaseException) -> str:
    """Write an exception's message in one line, without the table of all sites that Pyro appends, cut where too long.

    Its end is kept too: torch says there what was wrong with the tensor that it prints.
    """
    text = " ".join(str(error).split("Trace Shapes:")[0].split())
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 5) // 2
    return f"{text[:half].rstrip()} ... {text[-half:].lstrip()}"
