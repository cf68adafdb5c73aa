"""The one exception that means: the input is wrong, and here is what to do; and numbers of things in messages."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


class UserError(Exception):
    """Bad input. Its message is one line naming the file, row or key, what was seen, and the remedy.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """


def count(number: int, one: str, several: str = "") -> str:
    """`1 file`, `2 files`; where more than an `s` changes, `several` says it: `1 class`, `2 classes`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"
